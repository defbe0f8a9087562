//! Makes `assets/mnist-1k.idx.gz` anew, byte for byte, from a folder with the MNIST test set. It prints 1150 images.
//!
//! `cargo run -p advae-data --example make_mnist_1k -- <folder with the IDX files> <file to write>`

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::{env, fs};

use flate2::{Compression, GzBuilder};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [folder, output] = args.as_slice() else {
        return Err("usage: make_mnist_1k <folder with the IDX files> <file to write>".into());
    };
    let test = advae_data::load("mnist-test", Some(Path::new(folder)))?;
    let content = advae_data::mnist_1k::pack(&test);
    let file = gzip(&content)?;
    fs::write(output, &file)?;
    let (scored, seeds) = advae_data::mnist_1k::choice();
    println!(
        "{} images, {} bytes, {} packed",
        scored.len() + seeds.len(),
        content.len(),
        file.len()
    );
    Ok(())
}

/// No time, no name and no system in the header: the same content gives the same file.
fn gzip(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), Compression::best());
    encoder.write_all(content)?;
    encoder.finish()
}
