//! The results as SVG plots.

use crate::share::SIZES;
use crate::suite::{AtMemory, Growth, Results, Row};
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (900, 380);
const SHAPES: [&str; 3] = ["100 events", "500 events", "5 MB"];
const COLORS: [(&str, RGBColor); 6] = [
    ("event-ingest", RGBColor(0xce, 0x42, 0x2b)),
    ("floor", RGBColor(0x88, 0x88, 0x88)),
    ("Python", RGBColor(0x30, 0x69, 0x98)),
    ("TypeScript", RGBColor(0xe0, 0x9f, 0x1f)),
    ("Python, packed", RGBColor(0x8f, 0xb4, 0xd4)),
    ("TypeScript, packed", RGBColor(0xf1, 0xcf, 0x8a)),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes every plot for which the results have figures.
pub fn all(results: &Results, directory: &Path) -> Result<()> {
    let rows = &results.rows;
    let requests = &results.by_memory.requests;
    if !requests.is_empty() {
        let title = "Response time by memory size, ms (logarithmic)";
        let note = "Lines: p50. Bars: up to p99, or to p90 with fewer than 100 requests; the tick is p90. With DynamoDB at 4 ms and SQS at 8 ms.";
        by_memory(requests, title, note, |at| (at.p50, at.p90, at.p99), &directory.join("memory.svg"))?;
        let title = "Lambda's price of a million requests by memory size, USD (logarithmic)";
        let note = "List prices in us-east-1 for the measured duration, with the price per request.";
        by_memory(requests, title, note, |at| (at.lambda_dollars, None, None), &directory.join("memory-dollars.svg"))?;
    }
    bars(rows, "p50 latency, ms", |row| row.figures.p50, &directory.join("latency.svg"))?;
    bars(rows, "CPU per request, ms", |row| row.figures.cpu, &directory.join("cpu.svg"))?;
    bars(rows, "dollars per million events", |row| row.dollars.total(), &directory.join("dollars.svg"))?;
    if let Some(full) = &results.full {
        growth(&full.by_events, &full.by_bytes, &directory.join("growth.svg"))?;
        let cpu = full.endurance.iter().map(|stretch| (stretch.requests as f64, stretch.cpu)).collect();
        let rss = full.endurance.iter().map(|stretch| (stretch.requests as f64, stretch.rss)).collect();
        let titles = ["CPU per request, ms, by requests so far", "RSS, MB, by requests so far"];
        pair(titles, &[cpu, rss], &directory.join("endurance.svg"))?;
    }
    Ok(())
}

fn drawing(path: &Path, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    draw(&area)?;
    area.present().map_err(failed)
}

/// Draws a group of bars per shape and a bar per target, on a logarithmic axis.
fn bars(rows: &[Row], title: &str, figure: impl Fn(&Row) -> f64, path: &Path) -> Result<()> {
    let bars: Vec<(usize, usize, f64)> = rows
        .iter()
        .filter_map(|row| {
            let group = SHAPES.iter().position(|shape| *shape == row.shape)?;
            let place = COLORS.iter().position(|(name, _)| *name == row.target)?;
            Some((group, place, figure(row)))
        })
        .collect();
    let (least, most) =
        bars.iter().fold((f64::MAX, f64::MIN), |(least, most), bar| (least.min(bar.2), most.max(bar.2)));
    let width = COLORS.len() as f64 + 1.5;
    // The names of the groups are below the bars.
    let bottom = least / 2.0;
    drawing(path, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{title} (logarithmic)"), ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(10)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..width * SHAPES.len() as f64, (bottom / 1.5..most * 3.0).log_scale())
            .map_err(failed)?;
        let mesh = &mut chart.configure_mesh();
        mesh.disable_x_mesh().disable_x_axis().light_line_style(WHITE).draw().map_err(failed)?;
        for (place, (name, color)) in COLORS.iter().enumerate() {
            let bars = bars.iter().filter(|bar| bar.1 == place).map(|(group, _, value)| {
                let left = *group as f64 * width + place as f64 + 0.75;
                Rectangle::new([(left, bottom), (left + 0.9, *value)], color.filled())
            });
            let series = chart.draw_series(bars).map_err(failed)?;
            let swatch = |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled());
            series.label(*name).legend(swatch);
        }
        let numbers = bars.iter().map(|(group, place, value)| {
            let left = *group as f64 * width + *place as f64 + 0.75;
            Text::new(short(*value), (left, *value * 1.18), ("sans-serif", 11))
        });
        chart.draw_series(numbers).map_err(failed)?;
        let names = SHAPES.iter().enumerate().map(|(group, shape)| {
            Text::new((*shape).to_owned(), (group as f64 * width + width / 3.0, bottom / 1.06), ("sans-serif", 14))
        });
        chart.draw_series(names).map_err(failed)?;
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperLeft).label_font(("sans-serif", 12)).background_style(WHITE.mix(0.8));
        legend.draw().map_err(failed)
    })
}

/// Formats a number with about three significant digits.
fn short(value: f64) -> String {
    match value {
        10.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The figures of a point: the line goes through the first, and a bar leads to the others.
type Point = (f64, Option<f64>, Option<f64>);

/// Draws a figure by memory size: a panel per shape, and a line per target.
fn by_memory(
    requests: &[AtMemory],
    title: &str,
    note: &str,
    figure: fn(&AtMemory) -> Point,
    path: &Path,
) -> Result<()> {
    drawing(path, |area| {
        let area = area.titled(title, ("sans-serif", 18)).map_err(failed)?;
        let (panels, legend) = area.split_vertically(300);
        for (panel, shape) in panels.split_evenly((1, SHAPES.len())).iter().zip(SHAPES) {
            let points = requests.iter().filter(|at| at.shape == shape).filter_map(|at| {
                let size = SIZES.iter().position(|size| *size == at.memory_mb)?;
                let place = COLORS.iter().position(|(name, _)| *name == at.target)?;
                Some((place, size as f64 + (place as f64 - 2.5) * 0.09, figure(at)))
            });
            memory_panel(panel, shape, &points.collect::<Vec<_>>())?;
        }
        for (place, (name, color)) in COLORS.iter().enumerate() {
            let x = 20 + 140 * i32::try_from(place)?;
            legend.draw(&Rectangle::new([(x, 6), (x + 10, 16)], color.filled())).map_err(failed)?;
            legend.draw(&Text::new(*name, (x + 16, 5), ("sans-serif", 13))).map_err(failed)?;
        }
        legend.draw(&Text::new(note.to_owned(), (20, 26), ("sans-serif", 12))).map_err(failed)
    })
}

/// Draws points given as the target's place, x, and the figures.
fn memory_panel(area: &Area<'_>, shape: &str, points: &[(usize, f64, Point)]) -> Result<()> {
    let least = points.iter().map(|point| point.2.0).fold(f64::MAX, f64::min) / 2.2;
    let most = points.iter().map(|(_, _, (p50, p90, p99))| p99.or(*p90).unwrap_or(*p50)).fold(f64::MIN, f64::max) * 1.3;
    let mut chart = ChartBuilder::on(area)
        .caption(shape, ("sans-serif", 14))
        .margin(6)
        .y_label_area_size(44)
        .build_cartesian_2d(-0.5..SIZES.len() as f64 - 0.4, (least..most).log_scale())
        .map_err(failed)?;
    let mesh = &mut chart.configure_mesh();
    mesh.disable_x_mesh().disable_x_axis().light_line_style(WHITE).draw().map_err(failed)?;
    for (place, (_, color)) in COLORS.iter().enumerate() {
        let points: Vec<_> = points.iter().filter(|point| point.0 == place).collect();
        chart.draw_series(LineSeries::new(points.iter().map(|point| (point.1, point.2.0)), color)).map_err(failed)?;
        for (_, x, (p50, p90, p99)) in points {
            let dot = Circle::new((*x, *p50), 3, color.filled());
            chart.draw_series([dot]).map_err(failed)?;
            if let Some(top) = p99.or(*p90) {
                chart.draw_series([PathElement::new([(*x, *p50), (*x, top)], color)]).map_err(failed)?;
            }
            if let Some(p90) = p90 {
                let tick = PathElement::new([(*x - 0.06, *p90), (*x + 0.06, *p90)], color);
                chart.draw_series([tick]).map_err(failed)?;
            }
            if place == 0 {
                let number = Text::new(short(*p50), (*x - 0.1, *p50 / 1.12), ("sans-serif", 12));
                chart.draw_series([number]).map_err(failed)?;
            }
        }
    }
    let sizes = SIZES
        .iter()
        .enumerate()
        .map(|(place, size)| Text::new(format!("{size} MB"), (place as f64 - 0.35, least * 1.25), ("sans-serif", 12)));
    chart.draw_series(sizes).map_err(failed)?;
    Ok(())
}

fn growth(by_events: &[Growth], by_bytes: &[Growth], path: &Path) -> Result<()> {
    let points = |sizes: &[Growth], x: fn(&Growth) -> f64, y: fn(&Growth) -> f64| {
        sizes.iter().map(|size| (x(size), y(size))).collect::<Vec<_>>()
    };
    let megabytes = |size: &Growth| size.body_bytes as f64 / 1_048_576.0;
    let panels = [
        ("CPU, ms, by number of 200-byte events", points(by_events, |size| size.events as f64, |size| size.cpu)),
        ("CPU, ms, by MB of the body", points(by_bytes, megabytes, |size| size.cpu)),
        ("peak RSS, MB, by MB of the body", points(by_bytes, megabytes, |size| size.rss_peak)),
    ];
    drawing(path, |area| {
        for (panel, (title, points)) in area.split_evenly((1, panels.len())).iter().zip(&panels) {
            line(panel, title, points)?;
        }
        Ok(())
    })
}

fn pair(titles: [&str; 2], panels: &[Vec<(f64, f64)>; 2], path: &Path) -> Result<()> {
    drawing(path, |area| {
        for ((panel, title), points) in area.split_evenly((1, 2)).iter().zip(titles).zip(panels) {
            line(panel, title, points)?;
        }
        Ok(())
    })
}

fn line(area: &Area<'_>, title: &str, points: &[(f64, f64)]) -> Result<()> {
    let most = |axis: fn(&(f64, f64)) -> f64| points.iter().map(axis).fold(0.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 14))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..most(|point| point.0), 0.0..most(|point| point.1))
        .map_err(failed)?;
    chart.configure_mesh().light_line_style(WHITE).x_labels(6).y_labels(6).draw().map_err(failed)?;
    let color = COLORS[0].1;
    chart.draw_series(LineSeries::new(points.iter().copied(), &color)).map_err(failed)?;
    if points.len() < 50 {
        let dots = points.iter().map(|point| Circle::new(*point, 3, color.filled()));
        chart.draw_series(dots).map_err(failed)?;
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that `map_err` requires")]
fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}
