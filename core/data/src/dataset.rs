use sha2::{Digest, Sha256};

use crate::choice::shuffled;
use crate::sets::{Aside, Conventions, Set};
use crate::{DataError, Family};

/// Images with their labels and ids.
///
/// Samples are in the order of `ids` as stored; every method that makes a smaller dataset keeps the ids and the name,
/// so that (name, id) names a sample for ever.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// The name it was loaded by.
    pub name: String,
    /// Pixels in [0, 1], row-major `[N, C, H, W]`.
    pub images: Vec<f32>,
    /// Classes in `0..classes`, `[N]`.
    pub labels: Vec<u32>,
    /// Index of each sample in the original file, `[N]`. It keys the sample's randomness.
    pub ids: Vec<u64>,
    /// Shape of one image: `[C, H, W]`.
    pub shape: [usize; 3],
    /// How many classes there are (K).
    pub classes: usize,
    /// Whether there may be more classes: the source tells no more than the labels that occur.
    pub open_classes: bool,
    /// Whether the pixels were decoded from JPEG, and so differ a little from those that were photographed or published.
    pub lossy: bool,
    /// The known dataset that it is of; none for images of a user's own.
    pub set: Option<&'static Set>,
}

impl Dataset {
    /// A dataset of `images` `[N, C, H, W]` in [0, 1], `labels` `[N]` and `ids` `[N]`.
    ///
    /// # Errors
    /// [`DataError::Invalid`] if the lengths disagree, a pixel is outside [0, 1] or not a number, a label is not in
    /// `0..classes`, or an id occurs twice.
    pub fn new(
        name: impl Into<String>,
        images: Vec<f32>,
        labels: Vec<u32>,
        ids: Vec<u64>,
        shape: [usize; 3],
        classes: usize,
    ) -> Result<Self, DataError> {
        let name = name.into();
        let dataset = Self {
            name,
            images,
            labels,
            ids,
            shape,
            classes,
            open_classes: false,
            lossy: false,
            set: None,
        };
        match dataset.problem() {
            Some(problem) => Err(DataError::Invalid {
                name: dataset.name,
                problem,
            }),
            None => Ok(dataset),
        }
    }

    /// How many samples there are (N).
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// sha256 of the content, lowercase hex: of shape, classes, ids, labels and pixels, but not of the name. Equal
    /// hashes mean equal samples in equal order, whatever file they came from.
    pub fn sha256(&self) -> String {
        content_hash(&self.images, &self.labels, &self.ids, self.shape, self.classes)
    }

    /// Values in one image: C * H * W.
    pub fn image_len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The pixels of sample `i`, `[C, H, W]` in [0, 1].
    ///
    /// # Panics
    /// If `i` is not below [`len`](Self::len).
    pub fn image(&self, i: usize) -> &[f32] {
        let len = self.image_len();
        &self.images[i * len..(i + 1) * len]
    }

    /// The samples at the positions `indices`, in that order. A position given twice is there twice.
    ///
    /// # Panics
    /// If a position is not below [`len`](Self::len).
    pub fn select(&self, indices: &[usize]) -> Self {
        let mut images = Vec::with_capacity(indices.len() * self.image_len());
        for &i in indices {
            images.extend_from_slice(self.image(i));
        }
        Self {
            name: self.name.clone(),
            images,
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
            ids: indices.iter().map(|&i| self.ids[i]).collect(),
            ..*self
        }
    }

    /// The first `n` samples, or all if there are fewer.
    pub fn take(&self, n: usize) -> Self {
        self.slice(0, n.min(self.len()))
    }

    /// (training, validation): the last `fraction` of the samples is held out, unshuffled. The paper holds out the
    /// last 0.1 of the training set: 54,000 and 6,000 for MNIST.
    ///
    /// The number held out is `fraction * N` rounded to the nearest. A fraction outside [0, 1] counts as the nearer
    /// end, NaN as 0.
    pub fn split_last(&self, fraction: f64) -> (Self, Self) {
        let held_out = (self.len() as f64 * fraction.clamp(0.0, 1.0)).round() as usize;
        let cut = self.len() - held_out;
        (self.slice(0, cut), self.slice(cut, self.len()))
    }

    /// `n` samples chosen by `seed`, or all if there are fewer, sorted by id.
    ///
    /// The choice depends on the seed and the ids alone, not on the order of the samples, and grows with `n`: the
    /// subset of 100 lies within the subset of 1000 of the same seed.
    pub fn random_subset(&self, n: usize, seed: u64) -> Self {
        let mut by_id: Vec<usize> = (0..self.len()).collect();
        by_id.sort_by_key(|&i| self.ids[i]);
        let mut chosen = shuffled(self.len(), seed);
        chosen.truncate(n);
        chosen.sort_unstable();
        let indices: Vec<usize> = chosen.into_iter().map(|rank| by_id[rank]).collect();
        self.select(&indices)
    }

    /// What is customary on these images; nothing for a user's own.
    pub fn conventions(&self) -> &'static Conventions {
        self.set.map_or(&Conventions::NONE, |set| &set.family.conventions)
    }

    /// The family of datasets that it is of; none for images of a user's own.
    pub fn family(&self) -> Option<&'static Family> {
        self.set.map(|set| set.family)
    }

    /// Whether a model for images of that shape and that many classes can be given these images and asked for their labels. A
    /// model that does not say takes none.
    pub fn fits(&self, input: Option<[usize; 3]>, classes: Option<usize>) -> bool {
        let enough = |classes: usize| classes == self.classes || (self.open_classes && classes > self.classes);
        input == Some(self.shape) && classes.is_some_and(enough)
    }

    /// Images that a black-box attacker may begin with (Papernot et al. 2017), set aside from those that are scored; none where
    /// the dataset has none, or is only a part that lacks them.
    ///
    /// # Errors
    /// [`DataError`] where embedded ones cannot be read.
    pub fn attacker_images(&self) -> Result<Option<Self>, DataError> {
        match self.set.map(|set| &set.aside) {
            None | Some(Aside::Nothing) => Ok(None),
            Some(Aside::Embedded { images, .. }) => images().map(Some),
            Some(Aside::Own(ids)) => Ok(self.with_ids(&ids())),
        }
    }

    /// Without the images that [`attacker_images`](Self::attacker_images) gives, where they are among these.
    ///
    /// # Errors
    /// As [`attacker_images`](Self::attacker_images).
    pub fn without_attacker_images(&self) -> Result<Self, DataError> {
        let aside = match self.set.map(|set| &set.aside) {
            Some(Aside::Embedded { images, within: true }) => images()?.ids,
            Some(Aside::Own(ids)) => ids(),
            _ => return Ok(self.clone()),
        };
        let kept: Vec<usize> = (0..self.len()).filter(|&i| !aside.contains(&self.ids[i])).collect();
        Ok(self.select(&kept))
    }

    /// The samples of these ids, in that order, if all are there.
    fn with_ids(&self, ids: &[u64]) -> Option<Self> {
        let place = |id: &u64| self.ids.iter().position(|other| other == id);
        let places: Option<Vec<usize>> = ids.iter().map(place).collect();
        places.map(|places| self.select(&places))
    }

    /// The same as one of a known dataset.
    pub(crate) fn of(self, set: &'static Set) -> Self {
        Self {
            name: set.name.to_owned(),
            set: Some(set),
            ..self
        }
    }

    fn slice(&self, start: usize, end: usize) -> Self {
        let len = self.image_len();
        Self {
            name: self.name.clone(),
            images: self.images[start * len..end * len].to_vec(),
            labels: self.labels[start..end].to_vec(),
            ids: self.ids[start..end].to_vec(),
            ..*self
        }
    }

    fn problem(&self) -> Option<String> {
        let (n, values) = (self.len(), self.len().checked_mul(self.image_len()));
        if values != Some(self.images.len()) {
            let ([c, h, w], found) = (self.shape, self.images.len());
            return Some(format!("{found} pixel values for {n} images of {c}x{h}x{w}"));
        }
        if self.ids.len() != n {
            return Some(format!("{} ids for {n} labels", self.ids.len()));
        }
        if let Some(at) = self.images.iter().position(|pixel| !(0.0..=1.0).contains(pixel)) {
            let image = at / self.image_len();
            return Some(format!(
                "image {image} has the pixel {}, expected [0, 1]: divide bytes by 255",
                self.images[at]
            ));
        }
        if let Some(at) = self.labels.iter().position(|&label| label as usize >= self.classes) {
            return Some(format!(
                "sample {at} has the label {}, expected 0..{}",
                self.labels[at], self.classes
            ));
        }
        let mut ids = self.ids.clone();
        ids.sort_unstable();
        let twice = ids.windows(2).find(|pair| pair[0] == pair[1])?;
        Some(format!(
            "the id {} occurs twice: ids must be unique, they key each sample's randomness",
            twice[0]
        ))
    }
}

fn content_hash(images: &[f32], labels: &[u32], ids: &[u64], shape: [usize; 3], classes: usize) -> String {
    let mut sha = Sha256::new();
    for count in [ids.len(), classes, shape[0], shape[1], shape[2]] {
        sha.update((count as u64).to_le_bytes());
    }
    update(&mut sha, ids, |id| id.to_le_bytes());
    update(&mut sha, labels, |label| label.to_le_bytes());
    update(&mut sha, images, |pixel| pixel.to_le_bytes());
    hex(&sha.finalize())
}

/// Hashes in blocks: a call of `update` for every value would cost more than the hash.
pub(crate) fn update<T: Copy, const B: usize>(sha: &mut Sha256, values: &[T], bytes: impl Fn(T) -> [u8; B]) {
    let mut block = Vec::with_capacity(8192 * B);
    for chunk in values.chunks(8192) {
        block.clear();
        block.extend(chunk.iter().flat_map(|&value| bytes(value)));
        sha.update(&block);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
