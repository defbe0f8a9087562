//! How large values may become, and how much work they may be: a damaged file asks for more, and is refused before anything is made or
//! counted to.

use std::cell::Cell;

use advae_sdk::candle_core::{Result, bail};

/// Elements of a value for an image.
pub const VALUE: usize = 1 << 26;
/// Axes of a value.
const AXES: usize = 32;
/// Elements of all values for an image together, in a file of no size.
const VALUES: usize = 1 << 28;
/// Elements more for each of a file's bytes: networks with many weights, and those that use a weight at a million places.
const PER_BYTE: usize = 1 << 13;
/// So many multiplications and additions take as long as an element more.
const MULTIPLICATIONS: usize = 128;

/// Elements of a tensor, also those of its axes of size 0: a shape that has a number of them cannot overflow in parts either.
pub fn count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |count, d| count.checked_mul((*d).max(1)))
}

/// Elements that all values of an image may have together, in a file of so many bytes.
pub fn of_file(bytes: usize) -> usize {
    bytes.saturating_mul(PER_BYTE).saturating_add(VALUES)
}

/// The room of one run.
pub struct Room {
    images: usize,
    work: usize,
    done: Cell<usize>,
}

impl Room {
    /// For so many images, and no more work for each than this many elements.
    pub fn new(images: usize, work: usize) -> Self {
        Room {
            images: images.max(1),
            work,
            done: Cell::new(0),
        }
    }

    /// That a value of this shape fits. It counts as work. One no larger than `given` is no growth, and always fits.
    ///
    /// # Errors
    /// Where it does not.
    pub fn value(&self, dims: &[usize], given: usize) -> Result<()> {
        if dims.len() > AXES {
            bail!(
                "a value of {} axes: more than the {AXES} that fit here; the file is damaged",
                dims.len()
            )
        }
        let most = VALUE.saturating_mul(self.images).max(given);
        match count(dims) {
            Some(count) if count <= most => self.work(count),
            count => {
                let asked = count.map_or(format!("of shape {dims:?}"), |count| format!("of {count} elements"));
                let images = match self.images {
                    1 => String::new(),
                    images => format!(" for {images} images"),
                };
                bail!(
                    "a value {asked}{images}: more than the {VALUE} an image that fit here; the file is damaged, or the network is \
                     not for images"
                )
            }
        }
    }

    /// That a product of so many multiplications and additions is not too much work.
    ///
    /// # Errors
    /// Where it is.
    pub fn product(&self, sizes: &[usize]) -> Result<()> {
        self.work(count(sizes).map_or(usize::MAX, |count| count / MULTIPLICATIONS))
    }

    fn work(&self, elements: usize) -> Result<()> {
        let done = self.done.get().saturating_add(elements);
        let most = self.work.saturating_mul(self.images);
        if done > most {
            bail!(
                "the values up to here have {done} elements, {MULTIPLICATIONS} multiplications counted as one: more than the {most} \
                 that a file of this size may ask for; it is damaged, or the network is not for images"
            )
        }
        self.done.set(done);
        Ok(())
    }
}
