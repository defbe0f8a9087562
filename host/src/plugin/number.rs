//! Numbers as papers write them: `0.03` or `8/255`.

use anyhow::{Result, bail, ensure};

/// Reads a finite number, or a fraction of two numbers without sign or exponent, such as `8/255`.
///
/// # Errors
/// Where the text is neither, or its value is not finite.
pub fn number(text: &str) -> Result<f64> {
    if let Some(quotient) = fraction(text) {
        return quotient;
    }
    let Ok(value) = text.trim().parse::<f64>() else {
        bail!("'{text}' is no number: write it as 0.03 or as 8/255")
    };
    ensure!(
        value.is_finite(),
        "'{text}' is no finite number: write it as 0.03 or as 8/255"
    );
    Ok(value)
}

/// The value of `8/255`; absent where the text is no fraction, such as the path `a/b`.
pub(super) fn fraction(text: &str) -> Option<Result<f64>> {
    let (numerator, denominator) = text.trim().split_once('/')?;
    let (numerator, denominator) = (plain(numerator)?, plain(denominator)?);
    let quotient = numerator / denominator;
    Some(match quotient.is_finite() {
        true => Ok(quotient),
        false => Err(anyhow::anyhow!(
            "'{text}' is no finite number: its denominator is {denominator}"
        )),
    })
}

/// `8` or `0.5`: digits with at most one point between them.
fn plain(text: &str) -> Option<f64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(whole) && digits(part)).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_its_quotient() {
        assert_eq!(number("8/255").unwrap(), 8. / 255.);
        assert_eq!(number("0.5/2.5").unwrap(), 0.2);
        assert_eq!(number("3e-2").unwrap(), 0.03);
        assert_eq!(number("-1").unwrap(), -1.);
    }

    #[test]
    fn what_is_no_finite_number_is_refused() {
        for text in [
            "", "8/", "/255", "a/b", "1/2/3", "8/-255", "1e1/2", "nan", "inf", "8//255", ".5/1",
        ] {
            assert!(number(text).is_err(), "{text}");
            assert!(fraction(text).is_none(), "{text}");
        }
        let error = number("8/0").unwrap_err().to_string();
        assert_eq!(error, "'8/0' is no finite number: its denominator is 0");
    }
}
