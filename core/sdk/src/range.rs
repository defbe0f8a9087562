//! Ranges of settings.

use candle_core::{Result, bail};
use std::fmt::Debug;
use std::ops::RangeInclusive;

/// The value of a setting, if it lies in its range. Check every numeric setting before anything is allocated by it: values come from
/// the command line, and one that is far too large ends the host or never ends.
///
/// ```
/// # fn main() -> advae_sdk::Result<()> {
/// assert_eq!(advae_sdk::in_range("steps", 40, 1..=1000)?, 40);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If `value` is outside of `range`, or NaN. The error names the setting, its value and the range.
pub fn in_range<T: PartialOrd + Debug>(name: &str, value: T, range: RangeInclusive<T>) -> Result<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (low, high) = range.into_inner();
    bail!(
        "{name} is {}: choose a value from {} to {}",
        plain(&value),
        plain(&low),
        plain(&high)
    )
}

/// A number as a person writes it: `Debug` is short where `Display` prints three hundred zeros, but says `1.0` for 1.
fn plain(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map(str::to_string).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_is_refused_by_name_value_and_range() {
        assert_eq!(in_range("bits", 8u64, 1..=8).unwrap(), 8);
        assert_eq!(in_range("share", 0., 0. ..=1.).unwrap(), 0.);
        let said = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_string();
        for (error, expected) in [
            (
                in_range("bits", u64::MAX, 1..=8).unwrap_err(),
                "bits is 18446744073709551615: choose a value from 1 to 8",
            ),
            (
                in_range("sigma", 1e300, 0.01..=100.).unwrap_err(),
                "sigma is 1e300: choose a value from 0.01 to 100",
            ),
            (
                in_range("sigma", f64::NAN, 0.01..=100.).unwrap_err(),
                "sigma is NaN: choose a value from 0.01 to 100",
            ),
        ] {
            assert_eq!(said(error), expected);
        }
    }
}
