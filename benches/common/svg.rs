//! The table as a picture: a bar for each rival, on a logarithmic scale around the baseline, so that
//! twice as fast and twice as slow are equally far from the middle.

use super::race::{Outcome, Row};
use super::text::short;
use std::fmt::Write;

const WIDTH: f64 = 860.0;
/// Where a ratio of 1 is.
const MIDDLE: f64 = 480.0;
/// The distance of a factor of two.
const DOUBLING: f64 = 46.0;
/// The largest distance drawn, in doublings; longer bars are cut, their number tells.
const REACH: f64 = 4.6;
const LINE: f64 = 18.0;
const TITLE: f64 = 34.0;

/// Colours that are readable on light and on dark pages, wherever the picture is shown.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#57606a}.t{font-weight:600;font-size:13px}\
.r{fill:#8c959f}.l{fill:#2f81f7}.a{stroke:#8c959f;stroke-width:1}\
@media(prefers-color-scheme:dark){text{fill:#adbac7}.r{fill:#768390}.l{fill:#539bf5}}";

/// All workloads below each other.
pub(crate) fn picture(outcomes: &[Outcome]) -> String {
    let mut body = String::new();
    let mut y = 8.0;
    for outcome in outcomes {
        y = block(&mut body, outcome, y);
    }
    let height = y + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>Time relative to the first rival of each workload</title>\n\
         <style>{STYLE}</style>\n{body}</svg>\n"
    )
}

/// One workload from `y` on; where the next begins.
fn block(body: &mut String, outcome: &Outcome, y: f64) -> f64 {
    text(body, 8.0, y + 16.0, " class=\"t\"", &outcome.title);
    text(body, MIDDLE - 8.0, y + 16.0, " text-anchor=\"end\"", "\u{2190} faster");
    text(body, MIDDLE + 8.0, y + 16.0, "", "slower \u{2192}");
    let top = y + TITLE - 8.0;
    let mut line = top;
    for row in &outcome.rows {
        bar(body, outcome, row, line);
        line += LINE;
    }
    let _ = writeln!(
        body,
        "<line class=\"a\" x1=\"{MIDDLE}\" y1=\"{top}\" x2=\"{MIDDLE}\" y2=\"{line}\"/>"
    );
    line + 14.0
}

fn bar(body: &mut String, outcome: &Outcome, row: &Row, y: f64) {
    text(body, 8.0, y + 13.0, "", &row.name);
    let ratio = outcome.figures(row).ratio.median;
    let length = ratio.log2().clamp(-REACH, REACH) * DOUBLING;
    let (x, width) = (MIDDLE + length.min(0.0), length.abs().max(1.0));
    let class = if row.name.starts_with("lacuna") { "l" } else { "r" };
    let _ = writeln!(
        body,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"12\" rx=\"2\"/>",
        y + 3.0
    );
    let label = format!("{}\u{d7}", short(ratio));
    match ratio < 1.0 {
        true => text(body, x - 5.0, y + 13.0, " text-anchor=\"end\"", &label),
        false => text(body, x + width + 5.0, y + 13.0, "", &label),
    }
}

fn text(body: &mut String, x: f64, y: f64, attributes: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\"{attributes}>{content}</text>");
}
