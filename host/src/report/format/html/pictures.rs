//! Samples as they look: clean, adversarial, their difference, purified.

use crate::report::contents::Report;
use crate::report::figures::Summary;
use crate::results::{Look, Picture};
use serde::Serialize;

/// Columns of a screen that an image has at least.
const WIDTH: usize = 84;

/// The pictures of a cell.
#[derive(Serialize)]
pub struct Pictures {
    title: String,
    purified: bool,
    rows: Vec<Sample>,
}

#[derive(Serialize)]
struct Sample {
    label: u32,
    images: Vec<Image>,
}

#[derive(Serialize)]
struct Image {
    /// As an address that holds the image itself.
    data: String,
    alt: String,
    width: usize,
    height: usize,
    text: String,
    class: &'static str,
}

/// Of every cell that has some.
pub fn all(report: &Report) -> Vec<Pictures> {
    let shown = report.cells.iter().filter(|cell| !cell.cell.pictures.is_empty());
    shown.map(of_cell).collect()
}

fn of_cell(cell: &Summary) -> Pictures {
    let pictures = || cell.cell.pictures.values();
    Pictures {
        title: format!("{}, {}", cell.name(), cell.budget()),
        purified: pictures().any(|picture| picture.purified.is_some()),
        rows: pictures().map(sample).collect(),
    }
}

fn sample(picture: &Picture) -> Sample {
    let label = picture.label;
    let said = |look: &Look| {
        (
            format!("{} ({:.0} %)", look.prediction, 100. * look.confidence),
            class(look, label),
        )
    };
    let looks = [("clean", &picture.clean), ("adversarial", &picture.adversarial)];
    let looks = looks.map(|(what, look)| {
        let (text, class) = said(look);
        image(
            picture,
            &look.png,
            format!("{what} image of a {label}, taken for {text}"),
            text,
            class,
        )
    });
    let difference = image(
        picture,
        &picture.difference,
        format!("ten times the difference, image of a {label}"),
        String::new(),
        "",
    );
    let purified = picture.purified.as_ref().map(|png| {
        let (text, class) = said(&picture.adversarial);
        image(
            picture,
            png,
            format!("purified image of a {label}, taken for {text}"),
            text,
            class,
        )
    });
    Sample {
        label,
        images: looks.into_iter().chain([difference]).chain(purified).collect(),
    }
}

fn class(look: &Look, label: u32) -> &'static str {
    if look.prediction == label { "right" } else { "wrong" }
}

fn image(picture: &Picture, png: &str, alt: String, text: String, class: &'static str) -> Image {
    let [_, h, w] = picture.shape;
    let zoom = WIDTH.div_ceil(w.max(1)).max(1);
    Image {
        // Out of a file that anybody may have written: letters of base64 and nothing else.
        data: match png.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)) {
            true => format!("data:image/png;base64,{png}"),
            false => String::new(),
        },
        alt,
        width: w * zoom,
        height: h * zoom,
        text,
        class,
    }
}
