//! The table of scenarios.

mod decoder;
mod device;
mod launchers;
mod model;
mod modules;
pub mod plants;
mod steady;
mod subject;
mod tensor;
pub mod threads;
mod verbs;

use std::collections::BTreeSet;

use touchstone_kernels::{DecoderEntry, Entry};
use touchstone_runtime::{Cuda, Host};

use crate::scenario::{Body, Check, Expect, Place, Run, Scenario};

type Table = Vec<Scenario>;

/// Runs between two readings on the host, where a run takes less than a millisecond.
const HOST_ITERATIONS: u32 = 100;
/// Runs between two readings on a GPU.
const GPU_ITERATIONS: u32 = 10;

/// Adds a scenario for each precision of the GPU. The closure's type is another one each time, hence a macro.
macro_rules! on_both_precisions {
    ($table:expr, $subject:expr, $manner:expr, $entries:expr, |$b:ident| $run:expr) => {
        $crate::scenarios::push(
            $table,
            $subject,
            $manner,
            $entries,
            |run| ($crate::scenario::Place::CudaF32, $crate::scenario::Body::CudaF32(run)),
            Box::new(move |$b| $run),
        );
        $crate::scenarios::push(
            $table,
            $subject,
            $manner,
            $entries,
            |run| ($crate::scenario::Place::CudaBf16, $crate::scenario::Body::CudaBf16(run)),
            Box::new(move |$b| $run),
        );
    };
}
use on_both_precisions;

/// Adds a scenario for the host and for each precision of the GPU.
macro_rules! on_every_backend {
    ($table:expr, $subject:expr, $manner:expr, $entries:expr, |$b:ident| $run:expr) => {
        $crate::scenarios::push(
            $table,
            $subject,
            $manner,
            &[],
            |run| ($crate::scenario::Place::HostF32, $crate::scenario::Body::Host(run)),
            Box::new(move |$b| $run),
        );
        $crate::scenarios::on_both_precisions!($table, $subject, $manner, $entries, |$b| $run);
    };
}
use on_every_backend;

/// Adds a scenario that must end clean.
fn push<B>(
    table: &mut Table,
    subject: &str,
    manner: &'static str,
    entries: &'static [&'static str],
    wrap: fn(Run<B>) -> (Place, Body),
    run: Run<B>,
) {
    let (place, body) = wrap(run);
    let iterations = if place == Place::HostF32 { HOST_ITERATIONS } else { GPU_ITERATIONS };
    let expect = Expect::Clean;
    table.push(Scenario { subject: subject.to_owned(), manner, place, entries, body, expect, iterations });
}

/// Adds a scenario for the host alone.
fn host(
    table: &mut Table,
    subject: &str,
    manner: &'static str,
    expect: Expect,
    run: fn(&mut Host<f32>) -> Check,
) {
    push(table, subject, manner, &[], |run| (Place::HostF32, Body::Host(run)), Box::new(run));
    table.last_mut().expect("just pushed").expect = expect;
}

/// Adds a scenario for an open GPU whose precision does not matter.
fn on_gpu(table: &mut Table, subject: &str, manner: &'static str, run: fn(&mut Cuda<f32>) -> Check) {
    push(table, subject, manner, &[], |run| (Place::CudaF32, Body::CudaF32(run)), Box::new(run));
}

/// Adds a scenario that opens the GPU itself.
fn alone(table: &mut Table, subject: &str, manner: &'static str, run: fn() -> Check) {
    let wrap = |run: Run<()>| (Place::Cuda, Body::Alone(Box::new(move || run(&mut ()))));
    push(table, subject, manner, &[], wrap, Box::new(move |()| run()));
}

/// Every scenario there is.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let mut table = Table::new();
    verbs::list(&mut table);
    launchers::list(&mut table);
    tensor::list(&mut table);
    modules::list(&mut table);
    model::list(&mut table);
    decoder::list(&mut table);
    steady::list(&mut table);
    threads::list(&mut table);
    device::list(&mut table);
    plants::list(&mut table);
    table
}

/// Whether every entry point of the kernels is launched by a clean scenario of its precision, and no other is named.
///
/// # Errors
/// Those that are not.
pub fn every_kernel(scenarios: &[Scenario]) -> Result<(), String> {
    let covered: BTreeSet<String> = scenarios
        .iter()
        .filter(|scenario| scenario.expect == Expect::Clean)
        .flat_map(|scenario| {
            let precision = scenario.place.name().trim_start_matches("cuda-");
            scenario.entries.iter().map(move |stem| format!("{stem}_{precision}"))
        })
        .collect();
    let decoders = DecoderEntry::ALL
        .iter()
        .flat_map(|entry| entry.precisions().iter().map(move |precision| (entry, *precision)));
    let kernels: BTreeSet<String> = (Entry::ALL.iter().map(|entry| entry.name().to_owned()))
        .chain(decoders.map(|(entry, precision)| format!("{}_{precision}", entry.name())))
        .collect();
    let missing: Vec<_> = kernels.difference(&covered).collect();
    let stems: BTreeSet<&str> = kernels.iter().filter_map(|name| Some(name.rsplit_once('_')?.0)).collect();
    let named = scenarios.iter().flat_map(|scenario| scenario.entries);
    let unknown: Vec<_> = named.filter(|stem| !stems.contains(**stem)).collect();
    if kernels.is_empty() || !missing.is_empty() || !unknown.is_empty() {
        return Err(format!("kernels without a scenario: {missing:?}; named, and no kernel: {unknown:?}"));
    }
    Ok(())
}

/// Whether no two scenarios have one name: a child would run the first for both.
///
/// # Errors
/// The first name that comes twice, or an empty table.
pub fn names_differ(scenarios: &[Scenario]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    let twice = scenarios.iter().map(Scenario::name).find(|name| !names.insert(name.clone()));
    match twice {
        Some(name) => Err(format!("two scenarios are named {name}")),
        None if names.is_empty() => Err("there are no scenarios".into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this, the test that every kernel has a scenario could pass whatever the table holds.
    #[test]
    fn a_kernel_without_a_scenario_and_a_stem_without_a_kernel_are_named() {
        assert_eq!(every_kernel(&all()), Ok(()));
        let mut table = all();
        table.retain(|scenario| scenario.subject != "gelu" || scenario.place != Place::CudaBf16);
        assert!(every_kernel(&table).unwrap_err().contains("gelu_bf16"));
        let mut table = all();
        table[1].entries = &["no_such_kernel"];
        assert!(every_kernel(&table).unwrap_err().contains("no_such_kernel"));
    }

    /// Without this, an empty table or two scenarios of one name could pass.
    #[test]
    fn an_empty_table_and_a_name_given_twice_are_refused() {
        assert_eq!(names_differ(&all()), Ok(()));
        assert!(names_differ(&[]).is_err());
        let mut table = all();
        table.extend(all());
        assert!(names_differ(&table).is_err());
    }
}
