//! `purify` draws what it can and refuses the rest in one line, before anything is written.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use advae_data::npz::Saved;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A folder for a picture.
struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn purify_to(&self, out: &str, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
        command.args(["purify", "--purifier", "plain_purifier", "--out"]);
        command
            .arg(self.path(out))
            .args(args)
            .env("ADVAE_PLUGIN_PATH", fixtures::dir())
            .output()
            .unwrap()
    }

    /// One line, exit code 2, and no picture.
    fn refused(&self, args: &[&str], says: &[&str]) {
        self.refused_to("p.png", args, says);
        assert!(!self.path("p.png").exists(), "{args:?}");
    }

    fn refused_to(&self, out: &str, args: &[&str], says: &[&str]) {
        let output = self.purify_to(out, args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        for part in says {
            assert!(stderr.contains(part), "{args:?}: no '{part}' in: {stderr}");
        }
    }

    fn draws(&self, args: &[&str]) -> String {
        let output = self.purify_to("p.png", args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Two images of which the second has this pixel.
    fn npz(&self, name: &str, pixel: f32) -> String {
        let path = self.path(name);
        let mut images = vec![0.5; 2 * 784];
        images[800] = pixel;
        let saved = Saved {
            images,
            shape: [1, 28, 28],
            labels: vec![1, 2],
            ids: vec![10, 11],
            originals: Some(vec![0.25; 2 * 784]),
            targets: None,
            found: None,
            meta: String::new(),
        };
        saved.write(&path).unwrap();
        path.to_str().unwrap().into()
    }
}

/// Width and height.
fn size(path: &Path) -> (u32, u32) {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    (reader.info().width, reader.info().height)
}

#[test]
fn a_picture_of_more_than_a_hundred_megapixels_is_refused_before_it_is_made() {
    let scene = Scene::new();
    // 10 images of 28 pixels in 2 rows: 280 z + 22 by 56 z + 6 pixels.
    let remedy = "at most 100 are drawn: give --zoom 79 or less";
    scene.refused(&["--zoom", "80"], &["would have 100.6 megapixels", remedy]);
    scene.refused(&["--zoom", "100000"], &["would have 156800291.2 megapixels", remedy]);
    scene.refused(&["--zoom", &u64::MAX.to_string()], &[remedy]);
    scene.refused(
        &["--noise", "--samples", "4000000000"],
        &[
            "a picture of 2 rows with 4000000000 images each",
            "give fewer --samples",
        ],
    );
    scene.draws(&["--zoom", "79"]);
    assert_eq!(size(&scene.path("p.png")), (280 * 79 + 22, 56 * 79 + 6));
}

#[test]
fn a_file_that_is_there_is_only_replaced_on_request() {
    let scene = Scene::new();
    std::fs::write(scene.path("p.png"), "mine").unwrap();
    scene.refused_to("p.png", &[], &["p.png' is there already", "--overwrite"]);
    assert_eq!(std::fs::read(scene.path("p.png")).unwrap(), b"mine");
    scene.draws(&["--overwrite", "--zoom", "1"]);
    assert_eq!(size(&scene.path("p.png")), (302, 62));
    scene.refused_to("x.jpg", &[], &["x.jpg' does not end in .png"]);
    assert!(!scene.path("x.jpg").exists());
}

#[test]
fn none_is_a_row_of_the_images_as_they_are() {
    let scene = Scene::new();
    let said = scene.draws(&["--purifier", "none", "--zoom", "1"]);
    assert_eq!(size(&scene.path("p.png")), (302, 92));
    let last: Vec<&str> = said.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(last, ["3", "none", "0.00"], "{said}");
}

#[test]
fn one_file_at_a_time() {
    let scene = Scene::new();
    let (a, b) = (scene.npz("a.npz", 0.5), scene.npz("b.npz", 0.5));
    scene.refused(&[&a, &b], &["2 files were given", "run purify once for each"]);
    let said = scene.draws(&[&a, "--samples", "2"]);
    assert!(said.contains("adversarial") && said.contains("from clean"), "{said}");
}

#[test]
fn images_outside_their_range_are_refused() {
    let scene = Scene::new();
    for (pixel, says) in [
        (127., "a pixel is 127, outside [0, 1]"),
        (-0.4, "a pixel is -0.4, outside [0, 1]"),
        (f32::NAN, "a pixel is NaN"),
    ] {
        let file = scene.npz("a.npz", pixel);
        scene.refused(&[&file], &["a.npz' holds no images at x_adv[1]", says, "divide by 255"]);
        // The first image alone is one.
        scene.draws(&[&file, "--samples", "1", "--overwrite"]);
        std::fs::remove_file(scene.path("p.png")).unwrap();
    }
}
