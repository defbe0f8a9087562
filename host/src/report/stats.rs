//! Statistics of the report.

/// Normal quantile of a two-sided 95 % interval.
const Z95: f64 = 1.959_963_984_540_054;

/// Wilson's 95 % interval of a share of `n` samples. `successes` may be fractional (a mean over draws).
pub fn wilson(successes: f64, n: usize) -> (f64, f64) {
    if n == 0 {
        return (0., 1.);
    }
    let n = n as f64;
    let (p, z2) = (successes / n, Z95 * Z95);
    let centre = (p + z2 / (2. * n)) / (1. + z2 / n);
    let half = Z95 / (1. + z2 / n) * (p * (1. - p) / n + z2 / (4. * n * n)).sqrt();
    ((centre - half).max(0.), (centre + half).min(1.))
}

/// Two-sided p-value of McNemar's exact test, from the numbers of discordant pairs.
pub fn mcnemar(only_first: usize, only_second: usize) -> f64 {
    let (k, n) = (only_first.min(only_second), only_first + only_second);
    if n == 0 {
        return 1.;
    }
    // Sum of binomial(n, i) / 2^n for i <= k, in logarithms: 2^1000 overflows.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for i in 1..=k {
        log_term += ((n - i + 1) as f64).ln() - (i as f64).ln();
        tail += log_term.exp();
    }
    (2. * tail).min(1.)
}

/// McNemar's test for two verdicts on the same samples.
pub fn mcnemar_of(pairs: impl IntoIterator<Item = (bool, bool)>) -> f64 {
    let (mut first, mut second) = (0, 0);
    for pair in pairs {
        match pair {
            (true, false) => first += 1,
            (false, true) => second += 1,
            _ => {}
        }
    }
    mcnemar(first, second)
}

/// Median; the mean of the middle two where their number is even.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (n, half) = (values.len(), values.len() / 2);
    match n {
        0 => None,
        n if n % 2 == 1 => Some(values[half]),
        _ => Some((values[half - 1] + values[half]) / 2.),
    }
}

/// Largest value.
pub fn max(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    values.into_iter().max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 5e-5
    }

    #[test]
    fn wilson_agrees_with_known_values() {
        // Newcombe 1998, table I: 81 of 263, and 0 of 20, 29 of 29.
        for (successes, n, low, high) in [(81., 263, 0.2553, 0.3662), (0., 20, 0., 0.1611), (29., 29, 0.8830, 1.)] {
            let (l, h) = wilson(successes, n);
            assert!(close(l, low) && close(h, high), "{successes}/{n}: {l} {h}");
        }
        assert_eq!(wilson(0., 0), (0., 1.));
    }

    #[test]
    fn mcnemar_agrees_with_the_binomial() {
        assert!(close(mcnemar(1, 9), 0.021484));
        assert!(close(mcnemar(9, 1), 0.021484));
        assert_eq!(mcnemar(0, 0), 1.);
        assert_eq!(mcnemar(5, 5), 1.);
        assert!(mcnemar(400, 600) < 1e-9);
        assert!(mcnemar(0, 3000) >= 0.);
        assert!(close(mcnemar_of([(true, false), (true, true), (false, false)]), 1.));
    }

    #[test]
    fn medians_and_maxima() {
        assert_eq!(median([3., 1., 2.]), Some(2.));
        assert_eq!(median([4., 1., 2., 3.]), Some(2.5));
        assert_eq!(median([]), None);
        assert_eq!(max([1., 3., 2.]), Some(3.));
    }
}
