//! The picture of `--svg`: µs a token against the bytes that a token must read, both logarithmic, and the line below which no
//! device of this bandwidth can come. A peer stands above ours, at the bytes that ours must read.

use super::args::Measure;
use super::report::Section;
use super::row::{OURS, Row};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 480.0;
/// Left, right, top and bottom of the plot.
const PLOT: [f64; 4] = [80.0, WIDTH - 200.0, 60.0, HEIGHT - 60.0];
/// In the order in which systems appear.
const COLOURS: [&str; 6] = ["#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#e8a800", "#495057"];

/// The line of the limit.
const DASHED: &str = "fill=\"none\" stroke=\"#868e96\" stroke-dasharray=\"6 4\"";

/// One system's time on one model.
struct Point<'a> {
    row: &'a Row,
    section: &'a Section,
    bytes: f64,
}

/// Decades to pixels.
struct Scale {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Scale {
    /// With room of a third of a decade on both sides, in whole decades where the values are far apart.
    fn new(values: impl Iterator<Item = f64> + Clone, start: f64, end: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min).log10() - 0.33;
        let high = values.fold(f64::NEG_INFINITY, f64::max).log10() + 0.33;
        Self { low, high, start, end }
    }

    fn at(&self, value: f64) -> f64 {
        self.start + (value.log10() - self.low) / (self.high - self.low) * (self.end - self.start)
    }

    /// 1, 2 and 5 of every decade in range.
    fn ticks(&self) -> Vec<f64> {
        let decades = self.low.floor() as i32..=self.high.ceil() as i32;
        let ticks = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade)));
        ticks.filter(|tick| (self.low..=self.high).contains(&tick.log10())).collect()
    }
}

/// The picture, of every decode row; something must have been measured.
pub fn latency_by_size(sections: &[Section]) -> String {
    let points: Vec<Point> = sections
        .iter()
        .flat_map(|section| {
            let rows = section.rows.iter().filter(|row| row.measure == Measure::Decode);
            rows.map(move |row| Point { row, section, bytes: section.token_bytes as f64 })
        })
        .collect();
    let limits = limit_points(sections);
    let [left, right, top, bottom] = PLOT;
    let x = Scale::new(points.iter().map(|point| point.bytes), left, right);
    let times = points.iter().map(|point| point.row.median).chain(limits.iter().map(|limit| limit.1));
    let y = Scale::new(times, bottom, top);
    let mut body = axes(&x, &y);
    body += &limit_line(&limits, &x, &y);
    let mut systems: Vec<&str> = Vec::new();
    for point in &points {
        if !systems.contains(&point.row.system.as_str()) {
            systems.push(&point.row.system);
        }
        body += &dot(point, &systems, &x, &y);
    }
    for (index, system) in systems.iter().enumerate() {
        let (cy, colour) = (legend_y(index), COLOURS[index % COLOURS.len()]);
        body += &format!("<circle cx=\"{:.1}\" cy=\"{cy:.1}\" r=\"5\" fill=\"{colour}\"/>\n", right + 24.0);
        body += &text(right + 38.0, cy + 4.0, "start", system);
    }
    if !limits.is_empty() {
        let y = legend_y(systems.len());
        body += &format!("<path d=\"M{:.1} {y:.1}h24\" {DASHED}/>\n", right + 12.0);
        body += &text(right + 38.0, y + 4.0, "start", "bandwidth limit");
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<title>Time a token against the bytes it must read</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// Bytes, and the µs in which the device can read them, by size.
fn limit_points(sections: &[Section]) -> Vec<(f64, f64)> {
    let limit = |section: &Section| {
        let bytes = section.token_bytes as f64;
        section.bandwidth_bytes_per_s.map(|rate| (bytes, bytes / rate * 1e6))
    };
    let mut limits: Vec<_> = sections.iter().filter_map(limit).collect();
    limits.sort_by(|a, b| a.0.total_cmp(&b.0));
    limits
}

/// Through the models' limits, and on from the outermost at their bandwidth to the edges.
fn limit_line(limits: &[(f64, f64)], x: &Scale, y: &Scale) -> String {
    let (Some(first), Some(last)) = (limits.first(), limits.last()) else { return String::new() };
    let to = |decades: f64, (bytes, us): (f64, f64)| {
        let bytes_there = 10f64.powf(decades);
        (bytes_there, us * bytes_there / bytes)
    };
    let ends = [to(x.low, *first), to(x.high, *last)];
    let all = [&ends[..1], limits, &ends[1..]].concat();
    let path: Vec<String> =
        all.iter().map(|&(bytes, us)| format!("{:.1},{:.1}", x.at(bytes), y.at(us))).collect();
    format!("<polyline points=\"{}\" {DASHED}/>\n", path.join(" "))
}

/// Where entry number `index` of the legend stands.
fn legend_y(index: usize) -> f64 {
    PLOT[2] + 6.0 + 20.0 * index as f64
}

/// A point; ours is larger, and carries the model's name.
fn dot(point: &Point<'_>, systems: &[&str], x: &Scale, y: &Scale) -> String {
    let Point { row, section, bytes } = point;
    let place = systems.iter().position(|system| *system == row.system).unwrap_or_default();
    let (cx, cy, colour) = (x.at(*bytes), y.at(row.median), COLOURS[place % COLOURS.len()]);
    let ours = row.system == OURS;
    let radius = if ours { 6 } else { 5 };
    let name = format!("{}, {}", section.model, section.dtype);
    let what = format!("{name}: {}: {:.1} us a token", row.system, row.median);
    // Towards the middle, where there is room.
    let [left, right, ..] = PLOT;
    let (anchor, aside) = if cx < f64::midpoint(left, right) { ("start", 10.0) } else { ("end", -10.0) };
    let label = if ours { text(cx + aside, cy + 18.0, anchor, &name) } else { String::new() };
    let title = escape(&what);
    format!(
        "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius}\" fill=\"{colour}\"><title>{title}</title></circle>\n{label}"
    )
}

fn axes(x: &Scale, y: &Scale) -> String {
    let [left, right, top, bottom] = PLOT;
    let mut lines = String::new();
    for tick in x.ticks() {
        let at = x.at(tick);
        lines += &format!("<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#e9ecef\"/>\n");
        lines += &text(at, bottom + 18.0, "middle", &(tick / 1e6).to_string());
    }
    for tick in y.ticks() {
        let at = y.at(tick);
        lines += &format!("<path d=\"M{left} {at:.1}H{right}\" stroke=\"#e9ecef\"/>\n");
        lines += &text(left - 8.0, at + 4.0, "end", &tick.to_string());
    }
    lines += &text(left, top - 24.0, "start", "us a token: batch 1, sampling included, median");
    lines + &text((left + right) / 2.0, bottom + 42.0, "middle", "MB that a token must read")
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n", escape(words))
}

fn escape(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
