//! Curves as SVG: lines that differ by colour, dashes and marks, axes with round numbers, no script.

use std::fmt::Write;

/// A line of a chart.
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// Places, from the left to the right; both in the units of the axes.
    pub points: Vec<[f64; 2]>,
    /// Lower and upper end of an interval around each point, or nothing.
    pub band: Vec<[f64; 2]>,
    /// Whether the value stays what it is up to the next point.
    pub steps: bool,
}

/// What is drawn.
pub struct Chart {
    /// Said to those who do not see it.
    pub title: String,
    /// Name of the axis from left to right.
    pub x: String,
    /// The lines. Values from bottom to top are percent.
    pub series: Vec<Series>,
}

/// Size, and the place of the axes in it.
const SIZE: [f64; 2] = [640., 340.];
const LEFT: f64 = 52.;
const RIGHT: f64 = 14.;
const TOP: f64 = 12.;
const BOTTOM: f64 = 42.;
/// Lines that can be told apart.
const STYLES: usize = 8;
const MARKS: usize = 4;
/// Lines whose intervals do not hide each other.
const BANDS: usize = 4;

impl Chart {
    /// As SVG, to stand in a page whose style sheet has `.s0` to `.s7`.
    pub fn svg(&self) -> String {
        let largest = self
            .series
            .iter()
            .flat_map(|s| &s.points)
            .fold(0f64, |m, p| m.max(p[0]));
        let right = if largest > 0. { largest } else { 1. };
        let [width, height] = [SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM];
        let at = |x: f64, y: f64| [LEFT + x / right * width, TOP + (1. - y / 100.) * height];
        let mut out = format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
            SIZE[0],
            SIZE[1],
            escaped(&self.description())
        );
        for y in (0..=100).step_by(20) {
            let [left, row] = at(0., f64::from(y));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{left:.1}\" y1=\"{row:.1}\" x2=\"{:.1}\" y2=\"{row:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{y}</text>",
                SIZE[0] - RIGHT,
                left - 6.,
                row + 4.
            );
        }
        for x in ticks(right) {
            let [column, bottom] = at(x, 0.);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{column:.1}\" y1=\"{TOP}\" x2=\"{column:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"tick\" x=\"{column:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 4.,
                bottom + 18.,
                number(x)
            );
        }
        let _ = write!(
            out,
            "<text class=\"tick\" x=\"12\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 12 {:.1})\">accuracy, %</text>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            TOP + height / 2.,
            TOP + height / 2.,
            LEFT + width / 2.,
            SIZE[1] - 6.,
            escaped(&self.x)
        );
        for (i, series) in self.series.iter().enumerate() {
            out += &series.drawn(i, self.series.len() <= BANDS, right, at);
        }
        out + "</svg>" + &self.legend()
    }

    /// For those who do not see it: every line with its first and last value.
    fn description(&self) -> String {
        let lines = self.series.iter().filter_map(|series| {
            let ([x0, y0], [x1, y1]) = (series.points.first()?, series.points.last()?);
            Some(format!(
                "{} from {y0:.1} % at {} to {y1:.1} % at {}",
                series.name,
                number(*x0),
                number(*x1)
            ))
        });
        format!("{}: {}", self.title, lines.collect::<Vec<_>>().join("; "))
    }

    fn legend(&self) -> String {
        let mut out = String::from("<ul class=\"legend\">");
        for (i, series) in self.series.iter().enumerate() {
            let _ = write!(
                out,
                "<li><svg viewBox=\"0 0 34 12\" aria-hidden=\"true\"><path class=\"line s{}\" d=\"M1 6H33\"/>{}</svg>{}</li>",
                i % STYLES,
                mark(i, [17., 6.]),
                escaped(&series.name)
            );
        }
        out + "</ul>"
    }
}

impl Series {
    fn drawn(&self, i: usize, banded: bool, right: f64, at: impl Fn(f64, f64) -> [f64; 2]) -> String {
        let mut path = String::new();
        let mut before = None;
        for [x, y] in &self.points {
            let [px, py] = at(*x, *y);
            match before {
                None => drop(write!(path, "M{px:.1} {py:.1}")),
                Some(_) if self.steps => drop(write!(path, "H{px:.1}V{py:.1}")),
                Some(_) => drop(write!(path, "L{px:.1} {py:.1}")),
            }
            before = Some(py);
        }
        if self.steps && before.is_some() {
            // What was not broken by then is not broken at all.
            let _ = write!(path, "H{:.1}", at(right, 0.)[0]);
        }
        let mut out = String::new();
        if banded && self.band.len() == self.points.len() && !self.band.is_empty() {
            let upper = self.points.iter().zip(&self.band).map(|(p, b)| at(p[0], b[1]));
            let lower = self.points.iter().zip(&self.band).rev().map(|(p, b)| at(p[0], b[0]));
            let around: Vec<String> = upper.chain(lower).map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
            let _ = write!(
                out,
                "<polygon class=\"band s{}\" points=\"{}\"/>",
                i % STYLES,
                around.join(" ")
            );
        }
        let _ = write!(out, "<path class=\"line s{}\" d=\"{path}\"/>", i % STYLES);
        if !self.steps {
            self.points.iter().for_each(|[x, y]| out += &mark(i, at(*x, *y)));
        }
        out
    }
}

/// A mark of its own for each of some lines.
fn mark(i: usize, [x, y]: [f64; 2]) -> String {
    let class = format!("class=\"mark s{}\"", i % STYLES);
    match i % MARKS {
        0 => format!("<circle {class} cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"),
        1 => format!(
            "<rect {class} x=\"{:.1}\" y=\"{:.1}\" width=\"6.4\" height=\"6.4\"/>",
            x - 3.2,
            y - 3.2
        ),
        2 => format!("<path {class} d=\"M{x:.1} {:.1}l4.2 7h-8.4z\"/>", y - 4.4),
        _ => format!(
            "<path {class} d=\"M{x:.1} {:.1}l4.4 4.4l-4.4 4.4l-4.4-4.4z\"/>",
            y - 4.4
        ),
    }
}

/// Five to ten round numbers from 0 to `right`.
fn ticks(right: f64) -> Vec<f64> {
    let rough = right / 6.;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1., 2., 5., 10.]
        .into_iter()
        .map(|f| f * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    (0..=20)
        .map(|i| f64::from(i) * step)
        .take_while(|x| *x <= right * 1.000_001)
        .collect()
}

/// A tick's number, without the digits that rounding leaves.
fn number(x: f64) -> String {
    match x {
        x if x >= 1e4 => format!("{}k", (x / 1e3 * 1e6).round() / 1e6),
        x => ((x * 1e6).round() / 1e6).to_string(),
    }
}

/// Text as HTML and SVG print it.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        assert_eq!(
            ticks(0.3).iter().map(|x| number(*x)).collect::<Vec<_>>(),
            ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]
        );
        assert_eq!(
            ticks(5000.).iter().map(|x| number(*x)).collect::<Vec<_>>(),
            ["0", "1000", "2000", "3000", "4000", "5000"]
        );
        assert_eq!(number(20000.), "20k");
    }

    #[test]
    fn a_line_goes_through_its_points_and_is_told_in_words() {
        let series = Series {
            name: "a <b>".into(),
            points: vec![[0., 100.], [0.5, 50.], [1., 0.]],
            band: vec![],
            steps: false,
        };
        let chart = Chart {
            title: "Accuracy".into(),
            x: "epsilon".into(),
            series: vec![series],
        };
        let svg = chart.svg();
        // The corners of the axes, and their middle.
        assert!(svg.contains("d=\"M52.0 12.0L339.0 155.0L626.0 298.0\""), "{svg}");
        assert!(
            svg.contains("aria-label=\"Accuracy: a &lt;b&gt; from 100.0 % at 0 to 0.0 % at 1\""),
            "{svg}"
        );
    }

    #[test]
    fn a_step_keeps_its_value_up_to_the_next() {
        let series = Series {
            name: "a".into(),
            points: vec![[0., 100.], [1., 0.]],
            band: vec![],
            steps: true,
        };
        let svg = Chart {
            title: String::new(),
            x: String::new(),
            series: vec![series],
        }
        .svg();
        assert!(svg.contains("d=\"M52.0 12.0H626.0V298.0H626.0\""), "{svg}");
    }
}
