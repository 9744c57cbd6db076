//! Memory tests: after every scenario, the host's and the device's memory is back where it was.
//!
//! Each scenario runs in a process of its own: the test executable starts itself again with the scenario's name. The child warms up,
//! takes a baseline from every witness, runs the scenario many times and says what each witness saw; the parent decides whether that
//! is what the scenario promises. Planted leaks promise to be found, so a witness that has gone blind fails the suite.
//!
//! Witnesses: the kernels' ledger of driver handles (exact), the driver's `cuMemGetInfo` and NVML's figure for the process (steps of
//! 2 MiB), a counting allocator on the host (exact), and Valgrind where it is installed.

pub mod allocator;
pub mod child;
pub mod environment;
pub mod parent;
pub mod process;
pub mod report;
pub mod scenario;
pub mod scenarios;
pub mod valgrind;
pub mod verdict;
pub mod witness;
