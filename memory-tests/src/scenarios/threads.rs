//! Work that is shared among threads: handing it out and awaiting it must not allocate either.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use touchstone_runtime::Host;
use touchstone_runtime::threads::{count, share};

use super::steady::must_not_allocate;
use super::{Table, host};
use crate::scenario::{Check, Expect};

/// The scenarios of this subject run on two threads, all others on one: a thread allocates when it begins, at a time of its own.
pub const SUBJECT: &str = "threads";

thread_local! {
    // A thread's id would do, but asking for it allocates.
    static CALLS: Cell<bool> = const { Cell::new(false) };
}

fn shared_work_allocates_nothing(_: &mut Host<f32>) -> Check {
    CALLS.set(true);
    let helped = AtomicBool::new(false);
    let mut values = vec![1.0f32; 1 << 14];
    let mut work = || {
        share([&mut values], 8, 2, &|first, [values]| {
            if !CALLS.get() {
                helped.store(true, Ordering::Relaxed);
            }
            for value in values {
                *value = 0.5 * (*value + first as f32 / *value);
            }
        });
    };
    let began = Instant::now();
    while count() > 1 && !helped.load(Ordering::Relaxed) {
        work();
        ensure!(began.elapsed() < Duration::from_secs(10), "no other thread took a piece of the work");
    }
    must_not_allocate(|| {
        work();
        Ok(())
    })
}

/// Adds the scenarios.
pub(super) fn list(table: &mut Table) {
    host(table, SUBJECT, "shared-work-allocates-nothing", Expect::Clean, shared_work_allocates_nothing);
}
