//! `purify`: what purifiers make of images, as a picture.

use crate::commands::doctor::sample;
use crate::experiment::{Distances, Layout, Limits, LoadedModel, check_device, for_each, load_model, png, threads};
use crate::isolation::IsolationArgs;
use crate::terminal::console;
use crate::wire::model::Model;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::{Kind, NormKind};
use advae_data::npz::Saved;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// White pixels between images.
const GAP: usize = 2;
/// Pixels of a picture at most: a hundred megapixels.
const LARGEST: u128 = 100_000_000;
/// In place of a purifier: the images as they are.
const NONE: &str = "none";

/// Flags of `purify`.
#[derive(Args, Clone, Debug)]
pub struct PurifyArgs {
    /// One file of images that `eval --save-adversarial` wrote [default: clean ones of --dataset]
    #[arg(value_name = "FILE.npz")]
    file: Vec<PathBuf>,
    /// Purifier, or `none` for the unchanged images; repeatable, one row of the picture per purifier
    #[arg(long, required = true, value_name = "PLUGIN")]
    purifier: Vec<String>,
    /// Purify noise: the output shows what the purifier can draw at all
    #[arg(long, value_enum, value_name = "KIND", conflicts_with = "file", num_args = 0..=1, require_equals = true,
          default_missing_value = "uniform")]
    noise: Option<Noise>,
    /// Dataset of the clean images, or a path as for eval [default: the embedded sample that the first purifier takes, else mnist-1k]
    #[arg(long, value_name = "NAME|PATH", conflicts_with_all = ["file", "noise"])]
    dataset: Option<String>,
    /// Folder of the datasets that are not embedded [default: $ADVAE_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Number of images, one column of the picture per image
    #[arg(long, value_name = "N", default_value_t = 10)]
    samples: usize,
    /// Seed of all randomness
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device that runs the purifiers: `cpu` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Zoom: side of the square in the picture that shows one pixel of an image
    #[arg(long, value_name = "N", default_value_t = 3)]
    zoom: usize,
    /// Picture to write
    #[arg(long, value_name = "FILE.png")]
    out: PathBuf,
    /// Replace the picture if it already exists
    #[arg(long)]
    overwrite: bool,
    /// How plugins are kept apart from the host.
    #[command(flatten)]
    pub isolation: IsolationArgs,
}

impl PurifyArgs {
    /// Refuses what cannot be drawn or written, before anything is loaded.
    fn check(&self) -> Result<()> {
        check_device(&self.device)?;
        ensure!(self.samples > 0, "--samples is 0: give 1 or more");
        ensure!(self.zoom > 0, "--zoom is 0: give 1 or more");
        let files = || self.file.iter().map(|file| format!("'{}'", file.display()));
        ensure!(
            self.file.len() < 2,
            "{} files were given ({}): a picture shows one, run purify once for each with an --out of its own",
            self.file.len(),
            files().collect::<Vec<_>>().join(", ")
        );
        let out = self.out.display();
        let png = self
            .out
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
        ensure!(
            png,
            "the picture '{out}' does not end in .png: it is a PNG, name it FILE.png"
        );
        ensure!(
            !self.out.is_dir(),
            "the picture '{out}' is a folder: name a file, FILE.png"
        );
        ensure!(
            self.overwrite || !self.out.exists(),
            "the picture '{out}' is there already: name another file, or give --overwrite"
        );
        Ok(())
    }

    /// Refuses a picture that would be too large, before anything of its size is made. `rows`: those above the purifiers'.
    fn check_size(&self, n: usize, rows: usize, [_, h, w]: [usize; 3]) -> Result<()> {
        let rows = rows + self.purifier.len();
        let pixels = |zoom: usize| {
            let side = |count: usize, len: usize| {
                let image = (len as u128).saturating_mul(zoom as u128).saturating_add(GAP as u128);
                image.saturating_mul(count as u128).saturating_add(GAP as u128)
            };
            side(n, w).saturating_mul(side(rows, h))
        };
        if pixels(self.zoom) <= LARGEST {
            return Ok(());
        }
        let fits = (1..self.zoom.min(LARGEST as usize))
            .take_while(|zoom| pixels(*zoom) <= LARGEST)
            .last();
        let remedy = fits.map_or("give fewer --samples".into(), |zoom| {
            format!("give --zoom {zoom} or less, or fewer --samples")
        });
        bail!(
            "a picture of {rows} rows with {n} images each would have {:.1} megapixels at --zoom {}, at most {} are drawn: {remedy}",
            pixels(self.zoom) as f64 / 1e6,
            self.zoom,
            LARGEST / 1_000_000
        )
    }
}

/// Images without an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Noise {
    /// Every pixel is uniform in [0, 1)
    Uniform,
    /// One pixel in eight is 1, the others are 0: about as many white pixels as in a digit
    Sparse,
}

impl Noise {
    fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Sparse => "sparse",
        }
    }

    fn images(self, shape: &[usize], seed: u64) -> Tensor {
        let mut x = sample::uniform(shape, seed, 0., 1.);
        if self == Self::Sparse {
            x.data.iter_mut().for_each(|v| *v = f32::from(*v < 1. / 8.));
        }
        x
    }
}

/// Images of one kind, a row of the picture.
struct Row {
    name: String,
    x: Tensor,
}

/// The rows above the purifiers': the last one is what they are given.
struct Given {
    ids: Vec<u64>,
    rows: Vec<Row>,
}

/// Purifies the images, writes the picture and says how far they moved.
///
/// # Errors
/// Where images or plugins cannot be read or do not fit each other, or the picture cannot be written.
pub fn run(args: PurifyArgs) -> Result<i32> {
    args.check()?;
    let load = |spec: &String| match spec.as_str() {
        NONE => Ok(None),
        spec => load_model(spec, Kind::Purifier, &args.device, None).map(Some),
    };
    let purifiers: Vec<Option<LoadedModel>> = args.purifier.iter().map(load).collect::<Result<_>>()?;
    let Given { ids, mut rows } = given(&args, &purifiers)?;
    let clean = (rows.len() > 1).then(|| rows[0].x.clone());
    let input = rows[rows.len() - 1].x.clone();
    for purifier in purifiers {
        rows.push(match purifier {
            Some(LoadedModel { label, model, .. }) => Row {
                x: purify(&args, &model, &ids, &input)?,
                name: label,
            },
            None => Row {
                x: input.clone(),
                name: NONE.into(),
            },
        });
    }
    let picture = Picture::of(&rows, args.zoom)?;
    picture.write(&args.out, args.overwrite)?;
    console::print(&legend(&args.out, &rows, &input, clean.as_ref()))?;
    Ok(0)
}

fn given(args: &PurifyArgs, purifiers: &[Option<LoadedModel>]) -> Result<Given> {
    let row = |name: &str, data: &[f32], n: usize, [c, h, w]: [usize; 3]| {
        let x = Tensor::new(vec![n, c, h, w], data[..n * c * h * w].to_vec())?;
        anyhow::Ok(Row { name: name.into(), x })
    };
    let few = |n: usize, of: &dyn std::fmt::Display| {
        if n < args.samples {
            console::say(&format!(
                "note: '{of}' holds {n} images: all of them are drawn, not {}",
                args.samples
            ));
        }
    };
    if let Some(path) = args.file.first() {
        let saved = Saved::read(path)?;
        let n = args.samples.min(saved.ids.len());
        ensure!(
            n > 0,
            "'{}' holds no images: save some with eval --save-adversarial",
            path.display()
        );
        args.check_size(n, 1 + usize::from(saved.originals.is_some()), saved.shape)?;
        check_pixels(path, &saved, n)?;
        few(n, &path.display());
        let clean = saved.originals.iter().map(|x| row("clean", x, n, saved.shape));
        let adversarial = [row("adversarial", &saved.images, n, saved.shape)];
        return Ok(Given {
            ids: saved.ids[..n].to_vec(),
            rows: clean.chain(adversarial).collect::<Result<_>>()?,
        });
    }
    if let Some(noise) = args.noise {
        let shape = shape(purifiers);
        args.check_size(args.samples, 1, shape)?;
        let [c, h, w] = shape;
        return Ok(Given {
            ids: (0..args.samples as u64).collect(),
            rows: vec![Row {
                name: format!("{} noise", noise.name()),
                x: noise.images(&[args.samples, c, h, w], args.seed),
            }],
        });
    }
    let sample = || advae_data::sample_for(shape(purifiers)).map_or(advae_data::DEFAULT, |set| set.name);
    let name = args.dataset.as_deref().unwrap_or_else(sample);
    let dataset = advae_data::load(name, args.data_dir.as_deref())?.random_subset(args.samples, args.seed);
    few(dataset.len(), &dataset.name);
    args.check_size(dataset.len(), 1, dataset.shape)?;
    Ok(Given {
        rows: vec![row("clean", &dataset.images, dataset.len(), dataset.shape)?],
        ids: dataset.ids,
    })
}

/// The shape of images that the first purifier takes that does not take any.
fn shape(purifiers: &[Option<LoadedModel>]) -> [usize; 3] {
    let mut shapes = purifiers.iter().flatten().filter_map(|p| p.model.info().input);
    shapes.next().unwrap_or(sample::ANY)
}

/// Refuses images that are no images: of the first `n` samples, those that are drawn.
fn check_pixels(path: &Path, saved: &Saved, n: usize) -> Result<()> {
    let limits = Limits {
        bounds: [0., 1.],
        norm: NormKind::Linf,
        epsilon: None,
    };
    let arrays = [("x", saved.originals.as_ref()), ("x_adv", Some(&saved.images))];
    let size: usize = saved.shape.iter().product();
    for (array, images) in arrays.into_iter().filter_map(|(array, images)| Some((array, images?))) {
        for (i, image) in images.chunks(size.max(1)).take(n).enumerate() {
            if let Some(reason) = limits.refuse(image, image) {
                bail!(
                    "'{}' holds no images at {array}[{i}]: {reason}: scale pixels to [0, 1] (divide by 255, or undo a \
                     normalisation) and save them again",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

fn purify(args: &PurifyArgs, purifier: &Model, ids: &[u64], x: &Tensor) -> Result<Tensor> {
    let taken = purifier.info().input;
    ensure!(
        taken.is_none_or(|taken| x.shape[1..] == taken),
        "purifier '{}' takes images {taken:?}, these are {:?}: choose two that fit",
        purifier.name(),
        &x.shape[1..]
    );
    let layout = Layout::of([purifier].into_iter(), threads(args.threads)?, None);
    let samples: Vec<usize> = (0..ids.len()).collect();
    let batches = layout.cut(&samples);
    let parts = for_each(layout.workers, batches.len(), |i| {
        let ids: Vec<u64> = batches[i].iter().map(|i| ids[*i]).collect();
        let call = Call::score(args.seed, &ids).with_threads(layout.call_threads);
        purifier.forward(&call, &x.select(batches[i]))
    })?;
    Ok(Tensor::new(
        x.shape.clone(),
        parts.into_iter().flat_map(|part| part.data).collect(),
    )?)
}

/// Which row is which, and how far its images lie from what went in and from the clean ones.
fn legend(out: &Path, rows: &[Row], input: &Tensor, clean: Option<&Tensor>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    let mut header = vec!["row", "images", "mean L2 from what went in"];
    header.extend(clean.map(|_| "from clean"));
    table.set_header(header);
    for (i, Row { name, x }) in rows.iter().enumerate() {
        let from = |to: &Tensor| {
            let l2 = (0..x.rows()).map(|i| Distances::between(to.row(i), x.row(i)).l2);
            format!("{:.2}", l2.sum::<f64>() / x.rows() as f64)
        };
        let mut cells = vec![(i + 1).to_string(), name.clone(), from(input)];
        cells.extend(clean.map(from));
        table.add_row(cells);
    }
    let mut text = format!("{}\n", out.display());
    for line in table.lines() {
        text.extend([line.trim(), "\n"]);
    }
    text
}

/// Pixels of 8 bits, row by row, a byte a channel.
#[derive(Debug, PartialEq)]
struct Picture {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// A row of images under each other; values are cut to `[0, 1]`.
    fn of(rows: &[Row], zoom: usize) -> Result<Self> {
        let [n, channels, h, w] = rows[0].x.shape[..] else {
            unreachable!("images are [N, C, H, W]")
        };
        ensure!(
            matches!(channels, 1 | 3),
            "images of {channels} channels cannot be shown: 1 (grey) and 3 (RGB) can"
        );
        let side = |count: usize, len: usize| GAP + count * (len * zoom + GAP);
        let (width, height) = (side(n, w), side(rows.len(), h));
        let mut pixels = vec![255; width * height * channels];
        for (r, row) in rows.iter().enumerate() {
            for i in 0..n {
                let image = row.x.row(i);
                let (top, left) = (GAP + r * (h * zoom + GAP), GAP + i * (w * zoom + GAP));
                for (y, x) in (0..h * zoom).flat_map(|y| (0..w * zoom).map(move |x| (y, x))) {
                    let at = ((top + y) * width + left + x) * channels;
                    for c in 0..channels {
                        let value = image[(c * h + y / zoom) * w + x / zoom];
                        pixels[at + c] = (value.clamp(0., 1.) * 255.).round() as u8;
                    }
                }
            }
        }
        Ok(Self {
            width,
            height,
            channels,
            pixels,
        })
    }

    /// `overwrite`: whether a file that is there already may be replaced.
    fn write(&self, path: &Path, overwrite: bool) -> Result<()> {
        let bytes = png([self.width, self.height], self.channels, &self.pixels)?;
        let mut options = File::options();
        options.write(true).create_new(!overwrite).create(true).truncate(true);
        let written = options.open(path).and_then(|mut file| file.write_all(&bytes));
        written.with_context(|| format!("cannot write '{}'", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(shape: [usize; 4], data: Vec<f32>) -> Row {
        Row {
            name: "r".into(),
            x: Tensor::new(shape.to_vec(), data).unwrap(),
        }
    }

    #[test]
    fn every_pixel_has_its_place() {
        let rows = [row([2, 1, 1, 1], vec![0., 0.2]), row([2, 1, 1, 1], vec![-1., 7.])];
        let picture = Picture::of(&rows, 2).unwrap();
        assert_eq!((picture.width, picture.height, picture.channels), (10, 10, 1));
        let at = |y: usize, x: usize| picture.pixels[y * 10 + x];
        assert_eq!([at(2, 2), at(3, 3), at(2, 6), at(3, 7)], [0, 0, 51, 51]);
        assert_eq!([at(6, 2), at(7, 3), at(6, 6), at(7, 7)], [0, 0, 255, 255]);
        assert_eq!([at(1, 2), at(4, 2), at(2, 5), at(9, 9)], [255; 4]);
    }

    #[test]
    fn sparse_noise_lights_one_pixel_in_eight() {
        let x = Noise::Sparse.images(&[10, 1, 28, 28], 1);
        let lit = x.data.iter().filter(|v| **v == 1.).count();
        assert_eq!(x.data.iter().filter(|v| **v == 0.).count() + lit, 7840);
        assert!((lit as f64 / 7840. - 0.125).abs() < 0.015, "{lit}");
    }

    #[test]
    fn colours_lie_side_by_side() {
        let picture = Picture::of(&[row([1, 3, 1, 2], vec![0., 1., 0.2, 0., 0.4, 0.6])], 1).unwrap();
        let start = (GAP * picture.width + GAP) * 3;
        assert_eq!(picture.pixels[start..start + 6], [0, 51, 102, 255, 0, 153]);
        assert!(Picture::of(&[row([1, 2, 1, 1], vec![0.; 2])], 1).is_err());
    }

    #[test]
    fn the_legend_measures_every_row() {
        let rows = [row([1, 1, 1, 2], vec![0., 0.]), row([1, 1, 1, 2], vec![3., 4.])];
        let text = legend(Path::new("p.png"), &rows, &rows[1].x, Some(&rows[0].x));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            (lines[2].as_slice(), lines[3].as_slice()),
            (
                ["1", "r", "5.00", "0.00"].as_slice(),
                ["2", "r", "0.00", "5.00"].as_slice()
            )
        );
    }
}
