//! `cargo test --test memory`: see the crate's documentation. `TOUCHSTONE_REQUIRE_CUDA=1` and `TOUCHSTONE_REQUIRE_VALGRIND=1` turn what is
//! missing into a failure; `TOUCHSTONE_REPORT=path` writes the table as JSON.

use std::process::ExitCode;

use touchstone_memory_tests::{allocator, child, parent, scenarios};

#[global_allocator]
static ALLOCATOR: allocator::CountingAllocator = allocator::CountingAllocator;

fn main() -> ExitCode {
    let scenarios = scenarios::all();
    match std::env::var(child::SCENARIO) {
        Ok(name) => {
            child::main(&name, &scenarios);
            ExitCode::SUCCESS
        }
        Err(_) => parent::main(scenarios),
    }
}
