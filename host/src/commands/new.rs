//! `new`: a crate of a plugin to begin with, from the templates of `examples/`.

use crate::terminal::console;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Flags of `new`.
#[derive(Args, Clone, Debug)]
pub struct NewArgs {
    /// Kind of the plugin
    #[arg(value_enum)]
    kind: Kind,
    /// Name of the plugin: lower-case letters, digits and `_`
    name: String,
    /// Folder of the crate, which is created [default: NAME in the current folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write the plugin against the sdk and candle: short code, tapes and training included (the default)
    #[arg(long)]
    candle: bool,
    /// Write the plugin against the contract alone, without candle: longer code, fast to build, any way to compute
    #[arg(long, conflicts_with = "candle")]
    abi: bool,
    /// Use the sdk or the contract of this checkout of advae [default: the checkout that this program lies in, else the published version]
    #[arg(long, value_name = "CHECKOUT")]
    sdk: Option<PathBuf>,
}

/// Kinds of plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Turns images into logits
    Classifier,
    /// Turns images into images, in front of a classifier
    Purifier,
    /// Searches for adversarial images
    Attack,
    /// Defines what an attacker may know and use
    ThreatModel,
}

/// The files of a template, and how its plugin is used.
struct Template {
    manifest: &'static str,
    code: &'static str,
    tests: &'static str,
    /// Files of another kind than text.
    others: &'static [(&'static str, &'static [u8])],
    /// The command that tries it, with `NAME` for its file.
    command: &'static str,
}

macro_rules! template {
    ($folder:literal, $command:expr $(, $other:literal)*) => {
        Template {
            manifest: include_str!(concat!("../../../examples/", $folder, "/Cargo.toml")),
            code: include_str!(concat!("../../../examples/", $folder, "/src/lib.rs")),
            tests: include_str!(concat!("../../../examples/", $folder, "/src/tests.rs")),
            others: &[$(($other, include_bytes!(concat!("../../../examples/", $folder, "/src/", $other))),)*],
            command: $command,
        }
    };
}

impl Kind {
    fn template(self, base: &Base) -> Template {
        const PURIFIER: &str = "--classifier model_d --purifier NAME";
        const ATTACK: &str = "--classifier model_d --attack NAME";
        const THREAT_MODEL: &str = "--classifier model_d --threat-model NAME --attack square";
        match (self, base.package) {
            (Self::Classifier, "advae-abi") => template!("abi/classifier", "--classifier NAME", "mnist.f32"),
            (Self::Purifier, "advae-abi") => template!("abi/purifier", PURIFIER),
            (Self::Attack, "advae-abi") => template!("abi/attack", ATTACK),
            (Self::ThreatModel, "advae-abi") => template!("abi/threat_model", THREAT_MODEL),
            (Self::Classifier, _) => template!("classifier", "--classifier NAME", "mnist.safetensors"),
            (Self::Purifier, _) => template!("purifier", PURIFIER),
            (Self::Attack, _) => template!("attack", ATTACK),
            (Self::ThreatModel, _) => template!("threat_model", THREAT_MODEL),
        }
    }

    /// What the template calls itself.
    fn placeholder(self) -> &'static str {
        match self {
            Self::Classifier => "my_classifier",
            Self::Purifier => "my_purifier",
            Self::Attack => "my_attack",
            Self::ThreatModel => "my_threat_model",
        }
    }

    fn with_article(self) -> &'static str {
        match self {
            Self::Classifier => "a classifier",
            Self::Purifier => "a purifier",
            Self::Attack => "an attack",
            Self::ThreatModel => "a threat model",
        }
    }
}

/// What a plugin is written against.
struct Base {
    package: &'static str,
    /// Its folder in a checkout.
    folder: &'static str,
    /// The line by which templates find it.
    line: &'static str,
}

const SDK: Base = Base {
    package: "advae-sdk",
    folder: "core/sdk",
    line: "advae-sdk = { path = \"../../core/sdk\" }",
};
const ABI: Base = Base {
    package: "advae-abi",
    folder: "core/abi",
    line: "advae-abi = { path = \"../../../core/abi\" }",
};

/// What follows it is the line for a repository of its own.
const PUBLISHED: &str = "# In a repository of your own: ";

/// Words that no crate can be named.
const RESERVED: [&str; 12] = [
    "as", "core", "crate", "fn", "impl", "mod", "std", "self", "struct", "test", "type", "use",
];

/// Writes a crate. Returns the exit code.
///
/// # Errors
/// Where the name is none of a crate, the folder is there already, or cannot be written.
pub fn run(args: NewArgs) -> Result<i32> {
    let name = args.name.as_str();
    let letters = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    ensure!(
        letters && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase()) && !RESERVED.contains(&name),
        "'{name}' cannot be the name of a plugin: use small letters, digits and '_', beginning with a letter, such as {}",
        args.kind.placeholder()
    );
    let dir = args.dir.unwrap_or_else(|| PathBuf::from(name));
    let shown = dir.display();
    ensure!(
        dir.symlink_metadata().is_err(),
        "'{shown}' is there already: choose another name, or --dir"
    );
    let base = if args.abi { ABI } else { SDK };
    let found = match &args.sdk {
        Some(checkout) => Some(base.of(checkout)?),
        None => base.around(&std::env::current_exe().unwrap_or_default()),
    };
    let template = args.kind.template(&base);
    for (file, text) in files(
        args.kind,
        name,
        &template,
        &base.dependency(&template, found.as_deref()),
    ) {
        write(&dir.join(file), text.as_bytes())?;
    }
    for (file, bytes) in template.others {
        write(&dir.join("src").join(file), bytes)?;
    }
    let about = match base.package {
        "advae-sdk" => " # compiles candle, which takes some minutes the first time",
        _ => "",
    };
    console::say(&format!(
        "The folder '{shown}' has the crate of {}. Try it:\n  cd {shown}\n  cargo build --release{about}\n  cargo test\n  \
         advae-host doctor target/release/lib{name}.so\n  advae-host eval {}",
        args.kind.with_article(),
        command(&template, name)
    ));
    Ok(0)
}

impl Base {
    /// Its folder in a checkout.
    fn of(&self, checkout: &Path) -> Result<PathBuf> {
        checkout.join(self.folder).canonicalize().with_context(|| {
            format!(
                "--sdk '{}' is no checkout of advae: there is no {}",
                checkout.display(),
                self.folder
            )
        })
    }

    /// Its folder in the checkout that a program lies in, if it lies in one.
    fn around(&self, program: &Path) -> Option<PathBuf> {
        let folders = program.ancestors().map(|folder| folder.join(self.folder));
        folders.into_iter().find(|folder| folder.join("Cargo.toml").is_file())
    }

    /// The line of a manifest: a checkout's, else what the template says of a repository of its own.
    fn dependency(&self, template: &Template, found: Option<&Path>) -> (&'static str, String) {
        let published = template.manifest.lines().find_map(|line| line.strip_prefix(PUBLISHED));
        let line = match found {
            Some(found) => format!("{} = {{ path = {:?} }}", self.package, found.display().to_string()),
            None => published.unwrap_or(self.line).into(),
        };
        (self.line, line)
    }
}

fn command(template: &Template, name: &str) -> String {
    template
        .command
        .replace("NAME", &format!("target/release/lib{name}.so"))
}

/// Paths and texts; `dependency` is a line of the template's manifest, and what stands in its place.
fn files(kind: Kind, name: &str, template: &Template, dependency: &(&str, String)) -> Vec<(&'static str, String)> {
    let named = |text: &str| text.replace(kind.placeholder(), name);
    let manifest: String = (named(template.manifest).lines())
        .filter(|line| !line.starts_with(PUBLISHED))
        .map(|line| {
            if line == dependency.0 {
                format!("{}\n", dependency.1)
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    // The template's own head says what the template is.
    let code = template.code.split_once("\n\n").map_or(template.code, |(_, code)| code);
    let head = format!(
        "//! {} as a plugin of advae.\n//!\n//! cargo build --release && advae-host eval {}\n",
        name,
        command(template, name)
    );
    let doctor = format!("advae-host doctor target/release/lib{name}.so");
    vec![
        ("Cargo.toml", manifest),
        ("src/lib.rs", format!("{head}\n{}", named(code))),
        ("src/tests.rs", named(template.tests)),
        (".gitignore", "/target\n".into()),
        (
            "check.sh",
            format!(
                "#!/bin/sh\n# What has to hold before this plugin is used.\nset -e\ncargo fmt --check\ncargo test\ncargo build --release\n{doctor}\n"
            ),
        ),
        (".github/workflows/ci.yml", CI.into()),
    ]
}

/// Continuous integration: the same as by hand.
const CI: &str = "name: check
on: [push, pull_request]
jobs:
  check:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: dtolnay/rust-toolchain@stable
        with:
          components: rustfmt
      - run: cargo install --locked --git https://github.com/advae/advae advae-host
      - run: sh check.sh
";

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let shown = path.display();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder '{}'", folder.display()))?;
    }
    std::fs::write(path, bytes).with_context(|| format!("cannot write '{shown}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: Kind, base: &Base, found: Option<&str>, file: &str) -> String {
        let template = kind.template(base);
        let dependency = base.dependency(&template, found.map(Path::new));
        let files = files(kind, "mine", &template, &dependency);
        files.into_iter().find(|(name, _)| *name == file).unwrap().1
    }

    #[test]
    fn a_manifest_names_the_published_sdk_or_a_checkout() {
        let published = text(Kind::Attack, &SDK, None, "Cargo.toml");
        assert!(published.contains("name = \"mine\""), "{published}");
        assert!(published.contains("\nadvae-sdk = { git = "), "{published}");
        let local = text(Kind::Attack, &SDK, Some("/a/core/sdk"), "Cargo.toml");
        assert!(local.contains("\nadvae-sdk = { path = \"/a/core/sdk\" }\n"), "{local}");
        let contract = text(Kind::Attack, &ABI, None, "Cargo.toml");
        assert!(contract.contains("\nadvae-abi = { git = "), "{contract}");
        for manifest in [published, local, contract] {
            assert!(
                !manifest.contains("my_attack") && !manifest.contains("../.."),
                "{manifest}"
            );
            manifest.parse::<toml::Table>().unwrap();
        }
    }

    #[test]
    fn the_code_is_the_templates_under_its_own_name() {
        for kind in [Kind::Classifier, Kind::Purifier, Kind::Attack, Kind::ThreatModel] {
            for (base, marks) in [
                (&SDK, ["use advae_sdk::", "export_plugin! { "]),
                (&ABI, ["use advae_abi::", "advae_abi::export_root! {"]),
            ] {
                let code = text(kind, base, None, "src/lib.rs");
                assert!(code.starts_with("//! mine as a plugin of advae.\n"), "{code}");
                assert!(marks.iter().all(|mark| code.contains(mark)), "{code}");
                assert!(!code.contains("my_"), "{code}");
            }
        }
    }
}
