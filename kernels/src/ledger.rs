//! The ledger: every handle of the driver that this crate holds, to the byte.
//!
//! It is kept for the process, not for a device, so that it can still be read when every device is gone: then it must be empty.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a handle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Primary context.
    Context,
    /// Stream.
    Stream,
    /// Event.
    Event,
    /// Loaded module; its bytes are those of the cubin.
    Module,
    /// Instantiated graph.
    Graph,
    /// Device memory.
    DeviceMemory,
    /// Host memory that the device can reach.
    PinnedMemory,
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Context, "contexts"),
    (Kind::Stream, "streams"),
    (Kind::Event, "events"),
    (Kind::Module, "modules"),
    (Kind::Graph, "graphs"),
    (Kind::DeviceMemory, "device buffers"),
    (Kind::PinnedMemory, "pinned buffers"),
];

/// Handles of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub handles: usize,
    /// Their bytes, as asked for.
    pub bytes: usize,
}

/// What is held at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    counts: [Count; KINDS.len()],
}

impl Snapshot {
    /// Handles of `kind`.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Count {
        self.counts[kind as usize]
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| count.handles == 0 && count.bytes == 0)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing held");
        }
        let held = KINDS.iter().zip(&self.counts).filter(|(_, count)| count.handles > 0);
        let words: Vec<_> =
            held.map(|((_, name), c)| format!("{} {name} ({} bytes)", c.handles, c.bytes)).collect();
        f.write_str(&words.join(", "))
    }
}

#[derive(Default)]
struct Ledger {
    now: Snapshot,
    device_bytes_peak: usize,
}

static LEDGER: Mutex<Ledger> = Mutex::new(Ledger {
    now: Snapshot { counts: [Count { handles: 0, bytes: 0 }; KINDS.len()] },
    device_bytes_peak: 0,
});

fn ledger() -> MutexGuard<'static, Ledger> {
    // The counts are plain additions: a panic elsewhere while the lock was held leaves them right.
    LEDGER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is held now.
#[must_use]
pub fn snapshot() -> Snapshot {
    ledger().now
}

/// The most device memory held at once since the process began, in bytes.
#[must_use]
pub fn device_bytes_peak() -> usize {
    ledger().device_bytes_peak
}

/// One handle's line in the ledger. It lives in the handle's owner and is struck off when the owner is dropped, so an owner that is
/// forgotten stays visible.
#[derive(Debug)]
pub(crate) struct Line {
    kind: Kind,
    bytes: usize,
}

impl Line {
    /// Enters a handle.
    pub(crate) fn enter(kind: Kind, bytes: usize) -> Self {
        let mut ledger = ledger();
        let count = &mut ledger.now.counts[kind as usize];
        count.handles += 1;
        count.bytes += bytes;
        let device_bytes = ledger.now.of(Kind::DeviceMemory).bytes;
        ledger.device_bytes_peak = ledger.device_bytes_peak.max(device_bytes);
        Self { kind, bytes }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let count = &mut ledger().now.counts[self.kind as usize];
        count.handles -= 1;
        count.bytes -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this, a kind whose place in the table differs from its number would be counted as another.
    #[test]
    fn every_kind_is_counted_in_its_own_place() {
        for (place, (kind, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, place);
        }
    }

    /// Without this, a forgotten owner could go unseen.
    #[test]
    fn a_dropped_line_is_struck_off_and_a_forgotten_one_stays() {
        let before = snapshot().of(Kind::Event);
        drop(Line::enter(Kind::Event, 3));
        assert_eq!(snapshot().of(Kind::Event), before);
        std::mem::forget(Line::enter(Kind::Event, 3));
        assert_eq!(
            snapshot().of(Kind::Event),
            Count { handles: before.handles + 1, bytes: before.bytes + 3 }
        );
    }
}
