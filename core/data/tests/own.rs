//! A user's own images: folders and npz files, whole and damaged.

// clippy.toml exempts the tests, but not their helpers.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::path::Path;

use advae_data::{Conventions, DataError, Dataset, load};
use common::{jpeg, photo, png};
use ndarray::{Array, Array1, Dimension};
use ndarray_npy::{NpzWriter, WritableElement};
use tempfile::TempDir;

fn own(path: &Path) -> Result<Dataset, DataError> {
    load(path.to_str().unwrap(), None)
}

/// The message of an error, without the folder's changing name.
fn refused(dir: &TempDir, path: &Path) -> String {
    let error = own(path).unwrap_err().to_string();
    error.replace(&dir.path().display().to_string(), "DIR")
}

/// A folder `photos` with these files.
fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("photos")).unwrap();
    for (name, bytes) in files {
        let path = dir.path().join("photos").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// A grey image of 2x3 whose first pixel is `first`.
fn grey(first: u8) -> Vec<u8> {
    png([2, 3, 1], &[first, 0, 51, 102, 153, 255])
}

#[test]
fn a_folder_of_images_has_its_classes_in_the_order_of_their_names() {
    let dir = folder(&[
        ("zebra/b.png", grey(1)),
        ("ant/2.PNG", grey(2)),
        ("ant/1.png", grey(3)),
        ("zebra/.hidden", vec![]),
        ("README.txt", b"about".to_vec()),
    ]);
    let data = own(&dir.path().join("photos")).unwrap();
    assert_eq!(
        (data.name.as_str(), data.shape, data.classes),
        ("photos/", [1, 2, 3], 2)
    );
    assert_eq!((&data.labels[..], &data.ids[..]), (&[0, 0, 1][..], &[0, 1, 2][..]));
    let firsts: Vec<u8> = (0..3).map(|i| (data.image(i)[0] * 255.).round() as u8).collect();
    assert_eq!((firsts, &data.image(0)[1..3]), (vec![3, 2, 1], &[0., 0.2][..]));
    assert_eq!(
        (data.lossy, data.open_classes, data.conventions()),
        (false, false, &Conventions::NONE)
    );
    assert_eq!(own(&dir.path().join("photos/")).unwrap(), data);
    assert!(data.fits(Some([1, 2, 3]), Some(2)) && !data.fits(Some([1, 2, 3]), Some(3)));
    assert!(!data.fits(None, Some(2)) && !data.fits(Some([3, 2, 3]), Some(2)));
    assert!(data.attacker_images().unwrap().is_none());
}

#[test]
fn opaque_alpha_grey_jpegs_and_colours_are_read() {
    let rgba: Vec<u8> = photo(1).chunks(3).flat_map(|pixel| [pixel, &[255]].concat()).collect();
    let dir = folder(&[
        ("a/1.png", png([32, 32, 4], &rgba)),
        ("a/2.png", png([32, 32, 3], &photo(1))),
        ("b/1.jpg", jpeg([32, 32, 3], &photo(1))),
    ]);
    let data = own(&dir.path().join("photos")).unwrap();
    assert_eq!((data.shape, data.lossy), ([3, 32, 32], true));
    assert_eq!(data.image(0), data.image(1));
    let plane: Vec<u8> = photo(2)[..1024].to_vec();
    let dir = folder(&[("a/1.jpeg", jpeg([32, 32, 1], &plane))]);
    let data = own(&dir.path().join("photos")).unwrap();
    assert_eq!((data.shape, data.len()), ([1, 32, 32], 1));
    let near = |(value, byte): (&f32, &u8)| (value * 255. - f32::from(*byte)).abs() < 30.;
    assert!(data.images.iter().zip(&plane).all(near));
}

#[test]
fn what_is_wrong_with_a_folder_is_one_clear_line() {
    let message = |files: &[(&str, Vec<u8>)]| {
        let dir = folder(files);
        refused(&dir, &dir.path().join("photos"))
    };
    assert_eq!(
        message(&[]),
        "'DIR/photos' has no subfolders, expected a folder a class with PNG or JPEG images in it: sort the images into folders named \
         after their classes"
    );
    assert_eq!(
        message(&[("a.png", grey(0)), ("ant/a.png", grey(0))]),
        "'DIR/photos/a.png' lies in no class's folder, expected a folder a class with PNG or JPEG images in it: move it into the folder \
         of its class"
    );
    assert_eq!(
        message(&[("ant/a.png", grey(0)), ("bee/.keep", vec![])]),
        "'DIR/photos/bee' holds no images, expected 1 or more: fill the class, or take its folder away"
    );
    assert_eq!(
        message(&[("ant/a.png", grey(0)), ("ant/b.webp", vec![])]),
        "'DIR/photos/ant/b.webp' is no image by its name, expected .png, .jpg or .jpeg: convert it, or take it away"
    );
    assert_eq!(
        message(&[("ant/a.png", grey(0)), ("ant/b.png", png([3, 2, 1], &[0; 6]))]),
        "'DIR/photos/ant/b.png' is an image of 3x2 grey, expected 2x3 grey as all of them: bring all images to one size and kind"
    );
    assert_eq!(
        message(&[("ant/a.png", vec![])]),
        "'DIR/photos/ant/a.png' is empty, expected a PNG or JPEG image: convert the image, or take the file away"
    );
    assert_eq!(
        message(&[("ant/a.png", png([1, 1, 2], &[9, 254]))]),
        "'DIR/photos/ant/a.png' has transparent pixels, expected opaque ones: lay it on a background and save it without an alpha channel"
    );
    let whole = grey(0);
    let cut = message(&[("ant/a.png", whole[..whole.len() - 20].to_vec())]);
    assert!(
        cut.starts_with("'DIR/photos/ant/a.png' is a damaged or truncated PNG ("),
        "{cut}"
    );
}

#[test]
fn a_damaged_image_is_an_error_wherever_it_is_cut() {
    for (name, whole) in [
        ("a.png", png([32, 32, 3], &photo(3))),
        ("a.jpg", jpeg([32, 32, 3], &photo(3))),
    ] {
        for cut in (2..whole.len() - 2).step_by(7) {
            let dir = folder(&[(&format!("ant/{name}"), whole[..cut].to_vec())]);
            let message = refused(&dir, &dir.path().join("photos"));
            assert!(message.contains(name) && message.contains("PNG"), "{cut}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
}

#[test]
fn a_path_that_is_not_there_or_no_dataset_is_told() {
    let dir = TempDir::new().unwrap();
    let message = refused(&dir, &dir.path().join("nowhere"));
    assert!(
        message.starts_with("cannot open 'DIR/nowhere': No such file"),
        "{message}"
    );
    fs::write(dir.path().join("x.csv"), "1,2").unwrap();
    assert_eq!(
        refused(&dir, &dir.path().join("x.csv")),
        "'DIR/x.csv' is no dataset by its name, expected a folder of images, FILE.npz or FILE.parquet: name one of these"
    );
}

/// An npz file with two arrays, and perhaps ids.
fn npz<T, D, L>(dir: &TempDir, images: &Array<T, D>, labels: &[L], ids: Option<&[i64]>)
where
    T: WritableElement,
    D: Dimension,
    L: WritableElement + Clone,
{
    let mut npz = NpzWriter::new(File::create(dir.path().join("x.npz")).unwrap());
    npz.add_array("images", images).unwrap();
    npz.add_array("labels", &Array1::from(labels.to_vec())).unwrap();
    if let Some(ids) = ids {
        npz.add_array("ids", &Array1::from(ids.to_vec())).unwrap();
    }
    npz.finish().unwrap();
}

/// Values 0, 1, 2 and so on.
fn count<D: ndarray::IntoDimension<Dim = E>, E: Dimension>(shape: D) -> Array<u8, E> {
    let shape = shape.into_dimension();
    Array::from_shape_vec(shape.clone(), (0..shape.size()).map(|i| i as u8).collect()).unwrap()
}

#[test]
fn an_npz_file_holds_bytes_or_floats_with_the_channels_first_or_last() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.npz");
    npz(&dir, &count((2, 3, 4, 5)), &[1_i64, 6], None);
    let first = own(&path).unwrap();
    assert_eq!((first.shape, first.classes, first.open_classes), ([3, 4, 5], 7, true));
    assert_eq!(
        (first.name.as_str(), &first.ids[..], &first.labels[..]),
        ("x.npz", &[0, 1][..], &[1, 6][..])
    );
    assert_eq!(first.image(1)[..2], [60. / 255., 61. / 255.]);
    assert!(first.fits(Some([3, 4, 5]), Some(10)) && !first.fits(Some([3, 4, 5]), Some(6)));

    let last = count((2, 3, 4, 5)).permuted_axes([0, 2, 3, 1]); // [N, H, W, C]
    npz(&dir, &last, &[1_u8, 6], Some(&[40, 7]));
    let read = own(&path).unwrap();
    assert_eq!((&read.images, &read.ids[..]), (&first.images, &[40, 7][..]));

    npz(&dir, &count((2, 4, 5)), &[0_i32, 1], None);
    assert_eq!(own(&path).unwrap().shape, [1, 4, 5]);

    let floats = count((2, 3, 4, 5)).mapv(|byte| f32::from(byte) / 255.);
    npz(&dir, &floats, &[1_i64, 6], None);
    assert_eq!(own(&path).unwrap().sha256(), first.sha256());
}

#[test]
fn what_is_wrong_with_an_npz_file_is_one_clear_line() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.npz");
    let message = || refused(&dir, &path);
    npz(&dir, &count((2, 3, 4, 5)).mapv(f32::from), &[0_i64, 1], None);
    assert_eq!(
        message(),
        "dataset 'x.npz' is invalid: image 0 has the pixel 2, expected [0, 1]: divide bytes by 255"
    );
    npz(&dir, &count((2, 3, 4, 5)).mapv(f64::from), &[0_i64, 1], None);
    assert_eq!(
        message(),
        "array 'images' of 'DIR/x.npz' has the type '<f8', expected float32: save it as .astype('float32')"
    );
    npz(&dir, &count((2, 3, 4, 5)), &[0_i64, -1], None);
    assert_eq!(
        message(),
        "array 'labels' of 'DIR/x.npz' has the value -1 at index 1, expected a class from 0 on, below 2^20"
    );
    npz(&dir, &count((2, 3, 4, 5)), &[0_i64, 1 << 40], None);
    assert!(
        message().contains("has the value 1099511627776 at index 1"),
        "{}",
        message()
    );
    npz(&dir, &count((2, 3, 4, 5)), &[0_i64], None);
    assert_eq!(
        message(),
        "array 'labels' of 'DIR/x.npz' has the shape [1], expected [2]: save it with that shape"
    );
    npz(&dir, &count((2, 3)), &[0_i64, 1], None);
    assert!(
        message().contains("has the shape [2, 3], expected [N, C, H, W], "),
        "{}",
        message()
    );
    npz(&dir, &count((2, 3, 4, 5)), &[0_i64, 1], Some(&[3, 3]));
    assert!(
        message().contains("array 'ids' of 'DIR/x.npz' has the value 3 at index 1"),
        "{}",
        message()
    );

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(
        message().starts_with("cannot read 'DIR/x.npz' as npz: "),
        "{}",
        message()
    );

    let mut other = NpzWriter::new(File::create(&path).unwrap());
    other.add_array("x_adv", &count((1, 1, 2, 2))).unwrap();
    other.finish().unwrap();
    assert_eq!(
        message(),
        "'DIR/x.npz' has the arrays x_adv, expected 'images' and 'labels': it holds adversarial images: measure them with advae-host score"
    );
}
