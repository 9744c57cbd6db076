//! Ctrl-C: an answer to a prompt ends after the token under way; whatever else is going on ends on the spot.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// The exit code of an interrupted program, as shells give it for SIGINT.
pub const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static HEEDED: AtomicBool = AtomicBool::new(false);

/// Handles SIGINT, SIGTERM and SIGHUP from here on; until then they end the program as they end any.
pub fn install() {
    let handler = || {
        if REQUESTED.swap(true, SeqCst) || !HEEDED.load(SeqCst) {
            // Nobody looks at the flag, or somebody did not react to it. The driver frees a dead process's device memory.
            process::exit(EXIT_CODE.into());
        }
    };
    // It fails where signals cannot be handled at all; then Ctrl-C ends the program the usual way.
    let _ = ctrlc::set_handler(handler);
}

/// Runs `body`, which looks at [`requested`]: a signal ends it gently.
pub fn heed<T>(body: impl FnOnce() -> T) -> T {
    REQUESTED.store(false, SeqCst);
    HEEDED.store(true, SeqCst);
    let result = body();
    HEEDED.store(false, SeqCst);
    result
}

/// Whether a signal came since [`heed`] began.
pub fn requested() -> bool {
    REQUESTED.load(SeqCst)
}
