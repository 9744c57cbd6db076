//! The child's side: run one scenario and say what the witnesses saw.

use std::panic::{AssertUnwindSafe, catch_unwind};

use touchstone_kernels::Element;
use touchstone_runtime::{Cuda, Host};

use crate::allocator;
use crate::environment::Environment;
use crate::scenario::{Body, Check, Run, Scenario};
use crate::scenarios::threads;
use crate::valgrind;
use crate::verdict::{Figures, Outcome, Verdict, judge};
use crate::witness::{Reading, Witnesses, exact};

/// Names the scenario that this process is to run.
pub const SCENARIO: &str = "TOUCHSTONE_MEMORY_SCENARIO";

/// The name under which a child looks for a GPU instead of running a scenario.
pub const LOOK_AROUND: &str = "look-around";

/// Runs before the baseline: lazily loaded code, the driver's own pools and stdout's buffer are there after them.
const WARM_UPS: u32 = 2;

/// Tries to find the driver's figures unchanged over `iterations` runs. The driver grows pools of its own now and then and a neighbour
/// comes and goes, but a leak is there every time. The exact witnesses get no second try.
const ROUNDS: u32 = 3;

/// Runs the scenario `name` of `scenarios` and prints its verdict.
pub fn main(name: &str, scenarios: &[Scenario]) {
    // A pool's threads allocate when they like, which would count as the scenario's doing: only those that look at that have any.
    let threads = if name.starts_with(threads::SUBJECT) { 2 } else { 1 };
    assert!(touchstone_runtime::threads::limit(threads), "nothing has shared work before");
    let line = if name == LOOK_AROUND {
        serde_json::to_string(&Environment::find())
    } else if let Some(suite) = valgrind::Suite::of_name(name) {
        Ok(suite.run(scenarios))
    } else {
        serde_json::to_string(&run_named(name, scenarios))
    };
    println!("{}", line.expect("a verdict is plain data"));
}

/// Runs a scenario of the host once, without judging it here: Valgrind needs no baseline.
pub(crate) fn run_under_valgrind(scenario: &Scenario) -> Check {
    let Body::Host(run) = &scenario.body else {
        anyhow::bail!("it needs a GPU, whose libraries Valgrind cannot run")
    };
    caught(&mut || run(&mut Host::new()))
}

fn run_named(name: &str, scenarios: &[Scenario]) -> Verdict {
    let (outcome, figures, iterations) = match scenarios.iter().find(|scenario| scenario.name() == name) {
        None => (Outcome::Failed(format!("there is no scenario {name}")), Figures::default(), 0),
        Some(_) if !allocator::installed() => {
            (Outcome::Failed("the counting allocator is not installed".into()), Figures::default(), 0)
        }
        Some(scenario) => match measure(scenario) {
            Ok((outcome, figures)) => (outcome, figures, scenario.iterations),
            Err(error) => (Outcome::Failed(format!("{error:#}")), Figures::default(), scenario.iterations),
        },
    };
    Verdict { scenario: name.to_owned(), iterations, outcome, figures }
}

fn measure(scenario: &Scenario) -> anyhow::Result<(Outcome, Figures)> {
    let n = scenario.iterations;
    match &scenario.body {
        Body::Host(run) => rounds(n, &|| Witnesses::host().read(), || run(&mut Host::new())),
        Body::CudaF32(run) => on_device(n, Cuda::open(0)?, run),
        Body::CudaBf16(run) => on_device(n, Cuda::open(0)?, run),
        Body::Alone(run) => {
            let witnesses = Witnesses::all(None);
            let measured = rounds(n, &|| witnesses.read(), run)?;
            let held = touchstone_kernels::ledger::snapshot();
            anyhow::ensure!(
                measured.0 != Outcome::Clean || held.is_empty(),
                "no device is open, and the ledger has {held}"
            );
            Ok(measured)
        }
    }
}

fn on_device<E: Element>(
    iterations: u32,
    mut cuda: Cuda<E>,
    run: &Run<Cuda<E>>,
) -> anyhow::Result<(Outcome, Figures)> {
    let witnesses = Witnesses::all(Some(cuda.device().clone()));
    rounds(iterations, &|| witnesses.read(), || run(&mut cuda))
}

/// Warms up, and compares every witness before and after `iterations` runs.
fn rounds(
    iterations: u32,
    read: &dyn Fn() -> anyhow::Result<Reading>,
    mut run: impl FnMut() -> Check,
) -> anyhow::Result<(Outcome, Figures)> {
    let mut run = || caught(&mut run);
    for _ in 0..WARM_UPS {
        read()?;
        run()?;
    }
    let mut round = 1;
    loop {
        let before = read()?;
        let baseline = exact();
        for _ in 0..iterations {
            run()?;
            // What one run loses must not be made good by another.
            if exact() != baseline {
                break;
            }
        }
        let lost = exact() != baseline;
        let (outcome, figures) = judge(&before, &read()?);
        if lost || outcome == Outcome::Clean || round == ROUNDS {
            return Ok((outcome, figures));
        }
        round += 1;
    }
}

/// Turns a panic that a scenario did not expect into an error.
fn caught(run: &mut impl FnMut() -> Check) -> Check {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        let words = payload.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without words");
        Err(anyhow::anyhow!("panicked: {words}"))
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::witness::Witness;

    /// The outcome of a scenario that moves the device's free bytes and NVML's figure as `moves` says at each reading.
    fn outcome(moves: impl Fn(u64) -> (u64, u64)) -> Outcome {
        let readings = Cell::new(0);
        let read = || {
            readings.set(readings.get() + 1);
            let (lost, own) = moves(readings.get());
            let (ledger, host) = exact();
            Ok(Reading { ledger, host, device_free_bytes: Some((1 << 40) - lost), nvml_bytes: Some(own) })
        };
        rounds(3, &read, || Ok(())).unwrap().0
    }

    /// Without this, the second try that growth of the driver's own pools gets could also be given to a leak, or to nobody.
    #[test]
    fn growth_that_comes_every_time_is_a_leak_and_growth_that_comes_once_is_not() {
        const STEP: u64 = 2 << 20;
        assert_eq!(outcome(|_| (0, 0)), Outcome::Clean);
        assert_eq!(outcome(|n| (n * STEP, n * STEP)), Outcome::Leak(vec![Witness::Driver, Witness::Nvml]));
        let grown = |n: u64| if n > 3 { STEP } else { 0 };
        assert_eq!(outcome(|n| (grown(n), grown(n))), Outcome::Clean);
    }

    /// Without this, a neighbour that never rests could be called a leak of ours, or make the scenario pass.
    #[test]
    fn a_neighbour_that_never_rests_is_inconclusive() {
        assert!(matches!(outcome(|n| (n, 7)), Outcome::Inconclusive(_)));
    }

    /// Without this, a scenario that does not run at all could be called clean.
    #[test]
    fn a_scenario_that_fails_or_panics_is_an_error() {
        let read = || Witnesses::host().read();
        assert!(rounds(1, &read, || anyhow::bail!("planned")).is_err());
        assert!(rounds(1, &read, || panic!("planned")).is_err());
    }
}
