//! Charts as SVG, without a library: lines over a grid, readable on light and on dark pages.

/// A line of a chart: its points, and what it is called.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// How an axis grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Logarithmic,
}

/// A chart.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: (&'a str, Scale),
    pub(crate) y: (&'a str, Scale),
    pub(crate) series: &'a [Series],
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 56.0;

/// Follows the page: a reader of a dark page sees light lines. The colours are told apart by the colour-blind too.
const STYLE: &str = "\
    text { font: 13px system-ui, sans-serif; fill: #24292f } .title { font-size: 16px; font-weight: 600 }\n\
    .grid { stroke: #d0d7de } .axis { stroke: #57606a } .line { fill: none; stroke-width: 2.5; stroke-linejoin: round }\n\
    .c0 { stroke: #0969da; fill: #0969da } .c1 { stroke: #bc4c00; fill: #bc4c00 }\n\
    .c2 { stroke: #1a7f37; fill: #1a7f37 } .c3 { stroke: #8250df; fill: #8250df }\n\
    @media (prefers-color-scheme: dark) {\n\
      text { fill: #e6edf3 } .grid { stroke: #30363d } .axis { stroke: #8b949e }\n\
      .c0 { stroke: #58a6ff; fill: #58a6ff } .c1 { stroke: #ffa657; fill: #ffa657 }\n\
      .c2 { stroke: #56d364; fill: #56d364 } .c3 { stroke: #d2a8ff; fill: #d2a8ff }\n\
    }";

/// One axis: what it shows, and where a value lies.
struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            (least, most) = (least.min(value), most.max(value));
        }
        match scale {
            Scale::Linear => {
                let most = if most > 0.0 { most } else { 1.0 };
                // 1, 2 or 5 times a power of ten, so that there are four to eight of them.
                let rough = most / 6.0;
                let power = 10_f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
                let step = step.into_iter().find(|step| *step >= rough).unwrap_or(power);
                let count = (most / step).ceil();
                let places = std::iter::successors(Some(0.0), |place: &f64| Some(place + 1.0));
                let ticks = places.take_while(|place| *place <= count).map(|place| place * step);
                let ticks = ticks.collect();
                Self { scale, from: 0.0, to: count * step, ticks }
            }
            Scale::Logarithmic => {
                let least = if least > 0.0 && least.is_finite() { least } else { 1.0 };
                let most = if most > least { most } else { least * 10.0 };
                let (from, to) = (least.log10().floor(), most.log10().ceil());
                let mut ticks = Vec::new();
                let mut power = from;
                while power <= to {
                    ticks.push(10_f64.powf(power));
                    power += 1.0;
                }
                Self { scale, from, to, ticks }
            }
        }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic => value.max(f64::MIN_POSITIVE).log10(),
        };
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        value if value >= 1.0 || value == 0.0 => format!("{value:.0}"),
        value => format!("{value}"),
    }
}

impl Chart<'_> {
    pub(crate) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(self.x.1, points().map(|point| point.0));
        let y = Axis::new(self.y.1, points().map(|point| point.1));
        let at_x = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let at_y = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{title}\">\n<style>\n{STYLE}\n</style>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"26\">{title}</text>\n",
            title = escaped(self.title)
        );
        let mut put = |line: std::fmt::Arguments<'_>| {
            svg.push_str(&line.to_string());
            svg.push('\n');
        };
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in &y.ticks {
            let at = at_y(*tick);
            put(format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.5,
                short(*tick)
            ));
        }
        for tick in &x.ticks {
            let at = at_x(*tick);
            put(format_args!(
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 19.0,
                short(*tick)
            ));
        }
        put(format_args!(
            "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text x=\"{LEFT}\" y=\"{:.1}\" text-anchor=\"start\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 14.0,
            escaped(self.x.0),
            TOP - 12.0,
            escaped(self.y.0)
        ));
        let mut legend = right;
        for (colour, series) in self.series.iter().enumerate().rev() {
            // Wide enough for most letters.
            legend -= series.name.chars().fold(34.0, |width, _| width + 7.2);
            put(format_args!(
                "<line class=\"c{colour}\" stroke-width=\"2.5\" x1=\"{legend:.1}\" y1=\"48\" x2=\"{:.1}\" y2=\"48\"/>\
                 <text x=\"{:.1}\" y=\"52.5\">{}</text>",
                legend + 18.0,
                legend + 24.0,
                escaped(&series.name)
            ));
        }
        for (colour, series) in self.series.iter().enumerate() {
            let places: Vec<_> = series
                .points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y)))
                .collect();
            put(format_args!(
                "<polyline class=\"line c{colour}\" style=\"fill:none\" points=\"{}\"/>",
                places.join(" ")
            ));
            for ((x, y), (at_x, at_y)) in
                series.points.iter().map(|point| (point, (at_x(point.0), at_y(point.1))))
            {
                put(format_args!(
                    "<circle class=\"c{colour}\" cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"4\"><title>{}: {x:.0}, {y:.2}</title></circle>",
                    escaped(&series.name)
                ));
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
