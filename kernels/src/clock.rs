//! Where a decoder's cycles go: what `cu/clock.cuh` adds up in decoders that are compiled to read the clock.

use crate::context::Module;
use crate::error::Result;

/// Places of `cu/clock.cuh`, bytes of one, and bytes of its name.
const PLACES: usize = 16;
const PLACE: usize = 16;
const NAME: usize = 32;
/// Where the count stands in the word of the work.
const COUNT_SHIFT: u32 = 40;

/// What the decoder's first thread spent around one kind of handoff since the decoder was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// What it brings.
    pub name: String,
    /// How often.
    pub times: u64,
    /// Cycles since the handoff before, until it waited for this one.
    pub work: u64,
    /// Cycles that it waited.
    pub wait: u64,
}

/// Those of a module, in the order of their numbers. None where it has none, or does not read the clock.
pub(crate) fn handoffs(module: &Module) -> Result<Vec<Handoff>> {
    let (names, places) = (module.variable("clock_names")?, module.variable("clock_places")?);
    Ok(match (names, places) {
        (Some(names), Some(places)) => decode(&names, &places),
        _ => Vec::new(),
    })
}

fn decode(names: &[u8], places: &[u8]) -> Vec<Handoff> {
    assert_eq!((names.len(), places.len()), (PLACES * NAME, PLACES * PLACE), "as cu/clock.cuh lays them out");
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let handoff = |(name, place): (&[u8], &[u8])| Handoff {
        name: String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(),
        times: word(&place[..8]) >> COUNT_SHIFT,
        work: word(&place[..8]) % (1 << COUNT_SHIFT),
        wait: word(&place[8..]),
    };
    names.chunks(NAME).zip(places.chunks(PLACE)).map(handoff).filter(|handoff| handoff.times > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::{Handoff, NAME, PLACE, PLACES, decode};

    /// Without this, cycles could be told of another handoff than theirs, or waiting be taken for work.
    #[test]
    fn handoffs_are_read_as_the_device_lays_them_out() {
        let (mut names, mut places) = (vec![0; PLACES * NAME], vec![0; PLACES * PLACE]);
        names[NAME..NAME + 7].copy_from_slice(b"q, k, v");
        for (i, value) in [1 << 40 | 300_u64, 20].into_iter().enumerate() {
            places[PLACE + 8 * i..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let expected = Handoff { name: "q, k, v".to_owned(), times: 1, work: 300, wait: 20 };
        assert_eq!(decode(&names, &places), [expected]);
    }
}
