//! Makes `assets/cifar10-1k.jpegs.gz` anew from a parquet file with CIFAR-10's test images as JPEG. It prints 1150 images.
//!
//! `cargo run -p advae-data --example make_cifar10_1k -- <parquet file> <file to write>`

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::{env, fs};

use flate2::{Compression, GzBuilder};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [test, output] = args.as_slice() else {
        return Err("usage: make_cifar10_1k <parquet file> <file to write>".into());
    };
    let content = advae_data::cifar10_1k::pack(Path::new(test))?;
    // No time, no name and no system in the header: the same content gives the same file.
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), Compression::best());
    encoder.write_all(&content)?;
    let file = encoder.finish()?;
    fs::write(output, &file)?;
    let (scored, seeds) = advae_data::cifar10_1k::choice();
    let images = scored.len() + seeds.len();
    println!("{images} images, {} bytes, {} packed", content.len(), file.len());
    Ok(())
}
