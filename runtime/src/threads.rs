//! Work shared among threads: the caller and a pool that is made at the first need. The pool's threads spin for some tens of
//! microseconds after their last work, so that the next operation of a pass finds them awake, and then sleep.

use std::sync::{LazyLock, OnceLock};

use micropool::{ThreadPool, ThreadPoolBuilder};

/// Less work than this, in bytes read, is done before another thread would have begun.
const PIECE_BYTES_MIN: usize = 64 << 10;

/// More threads than any machine has use for; a program refuses to be asked for more.
pub const COUNT_MAX: u16 = 1024;

static COUNT: OnceLock<usize> = OnceLock::new();
static POOL: LazyLock<ThreadPool> =
    LazyLock::new(|| ThreadPoolBuilder::default().num_threads(count() - 1).build());

/// Threads that share work, the caller among them: the processors of this machine, unless [`limit`] said otherwise.
#[must_use]
pub fn count() -> usize {
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Sets the number of threads, at least 1, for the rest of the process. With 1 no thread is ever made. Whether it counts: it does not once
/// work was shared.
pub fn limit(threads: usize) -> bool {
    COUNT.set(threads.max(1)).is_ok()
}

/// Into how many pieces to cut work that reads `bytes`.
pub(crate) fn pieces(bytes: usize) -> usize {
    (bytes / PIECE_BYTES_MIN).clamp(1, count())
}

/// Cuts equally long `parts` into `pieces` stretches, or fewer where there are fewer threads, at multiples of `unit` elements, and calls
/// `body` with the index of the first element and the stretches of each part. What an element becomes must not depend on the cuts.
///
/// A stretch goes to one thread, and in call after call to the same where nothing keeps it busy: its weights stay in that processor's cache.
pub fn share<T: Send, const N: usize>(
    parts: [&mut [T]; N],
    unit: usize,
    pieces: usize,
    body: &(impl Fn(usize, [&mut [T]; N]) + Sync),
) {
    share_from(0, parts, unit, pieces.min(count()), body);
}

/// [`share`], of stretches that begin at element `first`.
fn share_from<T: Send, const N: usize>(
    first: usize,
    parts: [&mut [T]; N],
    unit: usize,
    pieces: usize,
    body: &(impl Fn(usize, [&mut [T]; N]) + Sync),
) {
    let units = parts[0].len().div_ceil(unit);
    let pieces = pieces.min(units);
    if pieces <= 1 {
        return body(first, parts);
    }
    let cut = units * (pieces / 2) / pieces * unit;
    let mut right = std::array::from_fn(|_| Default::default());
    let mut halves = parts.into_iter().zip(&mut right);
    let left = std::array::from_fn(|_| {
        let (part, right) = halves.next().expect("as many as there are parts");
        let (left, rest) = part.split_at_mut(cut);
        *right = rest;
        left
    });
    POOL.join(
        || share_from(first, left, unit, pieces / 2, body),
        || share_from(first + cut, right, unit, pieces - pieces / 2, body),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this, elements could be left out or worked on twice where lengths are no multiple of the unit or of the pieces.
    #[test]
    fn every_element_is_in_one_stretch() {
        for (len, unit) in [(0, 4), (1, 4), (7, 4), (8, 4), (9, 4), (64, 8), (100, 1), (3, 8)] {
            for pieces in 1..9 {
                let (mut a, mut b) = (vec![0; len], vec![0; len]);
                share_from(0, [&mut a, &mut b], unit, pieces, &|first, [a, b]| {
                    assert_eq!(first % unit, 0, "a cut inside a unit");
                    assert_eq!(a.len(), b.len());
                    for (i, (a, b)) in a.iter_mut().zip(b).enumerate() {
                        *a += first + i + 1;
                        *b += 1;
                    }
                });
                assert!(a.iter().enumerate().all(|(i, &a)| a == i + 1), "{len}, {unit}, {pieces}: {a:?}");
                assert!(b.iter().all(|&b| b == 1));
            }
        }
    }

    /// Without this, work could be cut so small that sharing costs more than it saves, or into more pieces than there are threads.
    #[test]
    fn little_work_stays_in_one_piece() {
        assert_eq!(pieces(0), 1);
        assert_eq!(pieces(PIECE_BYTES_MIN), 1);
        assert_eq!(pieces(usize::MAX), count());
    }
}
