//! Compiles every kernel for every architecture. NVRTC needs no GPU, so this runs in CI; without NVRTC it is ignored, not passed,
//! unless `TOUCHSTONE_REQUIRE_NVRTC=1` makes its absence a failure.

use libtest_mimic::{Arguments, Failed, Trial};
use touchstone_kernels::{ARCHITECTURES, Entry, Finding, compile, probe};

fn main() {
    let absent = matches!(probe().nvrtc, Finding::Missing { .. });
    let required = std::env::var_os("TOUCHSTONE_REQUIRE_NVRTC").is_some();
    if absent && !required {
        eprintln!("not checked: libnvrtc was not found");
    }
    let trial =
        Trial::test("every_kernel_compiles_for_every_architecture_without_spilling", every_kernel_compiles)
            .with_ignored_flag(absent && !required);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

/// Without this, a kernel that only newer or older GPUs accept, one that spills registers, or one whose products wait for each other would
/// show on somebody else's machine, or as slowness alone.
fn every_kernel_compiles() -> Result<(), Failed> {
    for arch in ARCHITECTURES {
        let log = compile(arch)?.log;
        // The assembler waits after each warpgroup product where it cannot see that nobody touches the sums meanwhile.
        if let Some(line) = log.lines().find(|line| line.contains("serialized")) {
            return Err(format!("{arch}: {line}").into());
        }
        for entry in Entry::ALL {
            let properties = format!("Function properties for {}\n", entry.name());
            let report = log.split(&properties).nth(1).ok_or(format!("{arch}: no {}", entry.name()))?;
            let line = report.lines().next().unwrap_or_default();
            if !(line.contains(" 0 bytes spill stores") && line.contains(" 0 bytes spill loads")) {
                return Err(format!("{arch}: {} spills: {line}", entry.name()).into());
            }
        }
    }
    Ok(())
}
