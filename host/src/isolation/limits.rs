//! What a process with plugins may do, and the flags that say so.

use anyhow::{Result, bail};
use clap::Args;
use std::str::FromStr;
use std::time::Duration;

/// Flags of every command that runs plugins.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Isolation of plugins")]
pub struct IsolationArgs {
    /// Run plugins inside the host's own process, for a debugger: a plugin that crashes ends the run
    #[arg(long, conflicts_with_all = ["cell_timeout", "cell_memory"])]
    in_process: bool,
    /// Give up a cell whose plugin makes no progress for so many seconds: no call of it begins or returns [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    cell_timeout: Option<Duration>,
    /// Memory that the process with the plugins may use, such as 4G or 512M [default: no limit]
    #[arg(long, value_name = "BYTES")]
    cell_memory: Option<Bytes>,
}

/// Flags of the commands whose process with plugins has nothing to write but images.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Isolation of plugins")]
pub struct SandboxArgs {
    #[command(flatten)]
    common: IsolationArgs,
    /// Take network and writing away from plugins (Linux with Landlock; /dev and the folder of --save-adversarial stay writable)
    #[arg(long, conflicts_with = "in_process")]
    sandbox: bool,
}

impl SandboxArgs {
    /// As [`IsolationArgs::limits`].
    pub fn limits(&self) -> Option<Limits> {
        self.common.limits().map(|limits| Limits {
            sandbox: self.sandbox,
            ..limits
        })
    }

    /// As [`IsolationArgs::flags`].
    pub fn flags(&self) -> Vec<String> {
        let mut flags = self.common.flags();
        if self.sandbox {
            flags.push("--sandbox".into());
        }
        flags
    }
}

/// What holds for a process with plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// How long a plugin may be silent.
    pub timeout: Option<Duration>,
    /// Bytes of memory.
    pub memory: Option<Bytes>,
    /// Whether network and writing are taken away.
    pub sandbox: bool,
}

impl IsolationArgs {
    /// What holds for plugins; absent where they run in this process: it was asked for, this is such a process, or there are none here.
    pub fn limits(&self) -> Option<Limits> {
        let apart = !self.in_process && super::channel().is_none() && cfg!(target_os = "linux");
        apart.then_some(Limits {
            timeout: self.cell_timeout,
            memory: self.cell_memory,
            sandbox: false,
        })
    }

    /// The flags again, for another process of the same run.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec![];
        if self.in_process {
            flags.push("--in-process".into());
        }
        if let Some(timeout) = self.cell_timeout {
            flags.extend(["--cell-timeout".into(), timeout.as_secs_f64().to_string()]);
        }
        if let Some(memory) = self.cell_memory {
            flags.extend(["--cell-memory".into(), memory.0.to_string()]);
        }
        flags
    }
}

fn seconds(text: &str) -> Result<Duration> {
    match text.parse().map(Duration::try_from_secs_f64) {
        Ok(Ok(time)) if !time.is_zero() => Ok(time),
        _ => bail!("'{text}' is no time: expected seconds, more than 0, such as 60"),
    }
}

/// An amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// Less than this does not load a plugin.
const LEAST: u64 = 64 << 20;

impl FromStr for Bytes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let unit = |c: char| "KMGT".find(c.to_ascii_uppercase());
        let (digits, power) = match text.char_indices().next_back() {
            Some((at, last)) => match unit(last) {
                Some(power) => (&text[..at], power + 1),
                None => (text, 0),
            },
            None => (text, 0),
        };
        let bytes = digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(1 << (10 * power)));
        match bytes {
            Some(bytes @ LEAST..) => Ok(Self(bytes)),
            Some(_) => bail!("'{text}' does not load a plugin: expected 64M or more"),
            None => bail!("'{text}' is no amount of memory: expected bytes, such as 4G or 512M"),
        }
    }
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 % (1 << 30) {
            0 => write!(f, "{}G", self.0 >> 30),
            _ => write!(f, "{}M", self.0 >> 20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_its_unit() {
        for (text, bytes) in [
            ("4G", 4 << 30),
            ("512m", 512 << 20),
            ("1T", 1 << 40),
            ("99999999", 99_999_999),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap().0, bytes, "{text}");
        }
        assert_eq!(
            (Bytes(4 << 30).to_string(), Bytes(1000 << 20).to_string()),
            ("4G".into(), "1000M".into())
        );
        for (text, says) in [
            ("", "is no amount of memory: expected bytes, such as 4G or 512M"),
            ("G", "is no amount of memory"),
            ("4GB", "is no amount of memory"),
            ("-1G", "is no amount of memory"),
            ("99999999999T", "is no amount of memory"),
            ("1M", "does not load a plugin: expected 64M or more"),
        ] {
            let error = text.parse::<Bytes>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_time_is_more_than_nothing() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        for text in ["0", "-1", "nan", "inf", "1e300", "a minute"] {
            let error = seconds(text).unwrap_err().to_string();
            assert!(
                error.ends_with("is no time: expected seconds, more than 0, such as 60"),
                "{error}"
            );
        }
    }

    #[test]
    fn flags_are_handed_on() {
        let args = IsolationArgs {
            in_process: false,
            cell_timeout: Some(Duration::from_millis(2500)),
            cell_memory: Some(Bytes(1 << 30)),
        };
        assert_eq!(args.flags(), ["--cell-timeout", "2.5", "--cell-memory", "1073741824"]);
        assert!(IsolationArgs::default().flags().is_empty());
    }
}
