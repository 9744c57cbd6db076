//! `touchstone doctor`: what this machine has, and the remedy for what it lacks.

use std::path::Path;

use serde_json::{Value, json};
use touchstone_functional_tests::{CASES, MODELS, find_cases, find_root};
use touchstone_runtime::cuda::{Finding, GpuInfo, Probe, probe};
use touchstone_runtime::weights::Checkpoint;

use crate::args::DoctorArgs;
use crate::exit::{Outcome, print};

/// One thing looked at.
struct Line {
    name: &'static str,
    /// What a run without it loses.
    needed: Need,
    finding: Finding,
}

/// What needs a thing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Every run.
    Always,
    /// A run on the GPU.
    Cuda,
    /// Nothing: it costs time alone.
    Comfort,
}

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Outcome {
    let lines = examine();
    let outcome = judge(&lines, args.require_cuda);
    let text = if args.json { as_json(&lines).to_string() } else { as_text(&lines) };
    outcome.and(print(&text))
}

/// Everything, in the order in which a run needs it.
fn examine() -> Vec<Line> {
    let Probe { driver, gpu, nvrtc, cache } = probe();
    let line = |name, needed, finding| Line { name, needed, finding };
    let mut lines = vec![line("cpu", Need::Always, Finding::Present(cpu()))];
    lines.extend(files());
    lines.push(line("driver", Need::Cuda, driver));
    if gpu.is_empty() {
        let what = "no GPU that the driver knows".to_owned();
        let remedy = "look at nvidia-smi; in a container, pass the GPU in (--gpus all)".to_owned();
        lines.push(line("gpu", Need::Cuda, Finding::Missing { what, remedy }));
    }
    let gpus = gpu.iter().enumerate().map(|(ordinal, info)| describe_gpu(ordinal, info));
    lines.extend(gpus.map(|text| line("gpu", Need::Cuda, Finding::Present(text))));
    lines.push(line("nvrtc", Need::Cuda, nvrtc));
    lines.push(line("kernel cache", Need::Comfort, cache));
    lines
}

/// The vector units that the CPU kernels can use, and the threads.
fn cpu() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let features = cpu_features().join(", ");
    let features = if features.is_empty() { "no vector extension that is used" } else { &features };
    format!("{}, {threads} threads, {features}", std::env::consts::ARCH)
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let features = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    features.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

/// The models and the golden cases.
fn files() -> Vec<Line> {
    let root = match find_root() {
        Ok(root) => root,
        Err(error) => {
            let remedy = "run it in the repository, or set TOUCHSTONE_ROOT to it".to_owned();
            let finding = Finding::Missing { what: error.to_string(), remedy };
            return vec![Line { name: "files", needed: Need::Always, finding }];
        }
    };
    let mut lines = models(&root.join(MODELS));
    let count = find_cases(&root.join(CASES)).map_or(0, |cases| cases.len());
    let finding = if count > 0 {
        Finding::Present(format!("{count} in {}", root.join(CASES).display()))
    } else {
        restore(format!("{} holds none", root.join(CASES).display()), CASES)
    };
    lines.push(Line { name: "golden cases", needed: Need::Comfort, finding });
    lines
}

/// Every folder of models, read as a run reads it.
fn models(dir: &Path) -> Vec<Line> {
    let mut folders: Vec<_> =
        std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    if folders.is_empty() {
        let finding = restore(format!("{} holds none", dir.display()), MODELS);
        return vec![Line { name: "model", needed: Need::Always, finding }];
    }
    let read = |folder: &std::path::PathBuf| match Checkpoint::open(folder) {
        Ok(checkpoint) => {
            let parameters = checkpoint.config().parameters();
            Finding::Present(format!("{}, {parameters} parameters", folder.display()))
        }
        Err(error) => restore(error.to_string(), MODELS),
    };
    folders.iter().map(|folder| Line { name: "model", needed: Need::Always, finding: read(folder) }).collect()
}

/// Something that the repository holds.
fn restore(what: String, path: &str) -> Finding {
    Finding::Missing { what, remedy: format!("restore it: git checkout -- {path}") }
}

fn describe_gpu(ordinal: usize, info: &GpuInfo) -> String {
    let GpuInfo { name, compute: (major, minor), total_bytes, free_bytes } = info;
    let gib = |bytes: &u64| *bytes as f64 / f64::from(1 << 30);
    let (free, total) = (gib(free_bytes), gib(total_bytes));
    format!("cuda:{ordinal}: {name}, compute capability {major}.{minor}, {free:.1} of {total:.1} GiB free")
}

/// Whether a run can begin.
fn judge(lines: &[Line], require_cuda: bool) -> Outcome {
    let lacks = |need| {
        lines.iter().any(|line| line.needed == need && matches!(line.finding, Finding::Missing { .. }))
    };
    if lacks(Need::Always) {
        Outcome::Unusable
    } else if require_cuda && lacks(Need::Cuda) {
        Outcome::NoDevice
    } else {
        Outcome::Passed
    }
}

fn as_text(lines: &[Line]) -> String {
    let mut text = String::new();
    for Line { name, finding, .. } in lines {
        text += &match finding {
            Finding::Present(detail) => format!("ok       {name:<13} {detail}\n"),
            Finding::Missing { what, remedy } => {
                format!("missing  {name:<13} {what}\n{:23}remedy: {remedy}\n", "")
            }
        };
    }
    let works = |cuda| if judge(lines, cuda) == Outcome::Passed { "ready" } else { "not ready" };
    text + &format!("runs on the CPU: {}; runs on a GPU: {}", works(false), works(true))
}

fn as_json(lines: &[Line]) -> Value {
    let findings: Vec<Value> = lines
        .iter()
        .map(|Line { name, finding, .. }| match finding {
            Finding::Present(detail) => json!({"name": name, "present": true, "detail": detail}),
            Finding::Missing { what, remedy } => {
                json!({"name": name, "present": false, "detail": what, "remedy": remedy})
            }
        })
        .collect();
    let ready = |cuda| judge(lines, cuda) == Outcome::Passed;
    json!({"findings": findings, "cpu_ready": ready(false), "cuda_ready": ready(true)})
}
