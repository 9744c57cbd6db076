//! Picking the next token.

use super::Float;
use crate::sampling::{Sampling, uniform};

/// A vocabulary index and its logit over the temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    z: f32,
    index: u32,
}

/// The token for one row of logits `[V]`, by [`Sampling`]'s rule.
///
/// `step` numbers the random draw. `candidates` is scratch with room for V.
pub(super) fn pick<T: Float>(
    logits: &[T],
    sampling: &Sampling,
    step: u32,
    candidates: &mut Vec<Candidate>,
) -> u32 {
    if sampling.temperature == 0.0 {
        return largest((0..).zip(logits.iter().copied()));
    }
    candidates.clear();
    candidates.extend((0..).zip(logits).map(|(index, logit)| {
        let z = logit.to_f64() as f32 / sampling.temperature;
        // A NaN is never picked while there is a number, and orders like one.
        let z = if z.is_nan() { f32::NEG_INFINITY } else { z };
        Candidate { z, index }
    }));
    keep_top_k(candidates, sampling.top_k as usize);
    keep_top_p(candidates, sampling.top_p);
    // The lowest index wins a tie, whatever order the filters left.
    candidates.sort_unstable_by_key(|candidate| candidate.index);
    largest(candidates.iter().map(|&Candidate { z, index }| {
        let u = uniform(sampling.seed, step, index);
        (index, f64::from(z) - (-u.ln()).ln())
    }))
}

/// The index of the largest value, the first of equals.
fn largest<V: PartialOrd>(values: impl IntoIterator<Item = (u32, V)>) -> u32 {
    let mut best: Option<(u32, V)> = None;
    for (index, value) in values {
        if best.as_ref().is_none_or(|(_, most)| value > *most) {
            best = Some((index, value));
        }
    }
    best.expect("a row of logits has at least one value").0
}

/// Drops every z under the k-th largest; 0 keeps all.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    let (_, kth, _) = candidates.select_nth_unstable_by(k - 1, |a, b| b.z.total_cmp(&a.z));
    let threshold = kth.z;
    candidates.retain(|candidate| candidate.z >= threshold);
}

/// Keeps the smallest set of largest z whose softmax mass reaches `p`, ties included; 1 keeps all.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    candidates.sort_unstable_by(|a, b| b.z.total_cmp(&a.z));
    let most = candidates[0].z;
    let mass = |candidate: &Candidate| (f64::from(candidate.z) - f64::from(most)).exp();
    let wanted = f64::from(p) * candidates.iter().map(mass).sum::<f64>();
    let mut reached = 0.0;
    let last = candidates.iter().position(|candidate| {
        reached += mass(candidate);
        reached >= wanted
    });
    let threshold = candidates[last.unwrap_or(candidates.len() - 1)].z;
    candidates.retain(|candidate| candidate.z >= threshold);
}

#[cfg(test)]
mod tests {
    use super::{Candidate, pick};
    use crate::sampling::{Sampling, uniform};

    fn pick_of(logits: &[f32], sampling: Sampling, step: u32) -> u32 {
        pick(logits, &sampling, step, &mut Vec::new())
    }

    /// Without this, a tie could go to the last of equals.
    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(pick_of(&[-1.0, 3.0, 2.0, 3.0], Sampling::GREEDY, 0), 1);
    }

    /// Without this, the filters could cut one candidate too many or too few, or split a tie.
    #[test]
    fn filters_keep_ties_and_nothing_below() {
        let candidates = |values: &[f32]| -> Vec<Candidate> {
            (0..).zip(values).map(|(index, &z)| Candidate { z, index }).collect()
        };
        let indices = |mut kept: Vec<Candidate>| {
            kept.sort_by_key(|candidate| candidate.index);
            kept.iter().map(|candidate| candidate.index).collect::<Vec<_>>()
        };
        let mut kept = candidates(&[1.0, 5.0, 3.0, 3.0, 0.0]);
        super::keep_top_k(&mut kept, 2);
        assert_eq!(indices(kept), [1, 2, 3]);
        // Masses 0.1, 0.4, 0.1, 0.4: 0.75 takes both of the largest, 0.85 takes both of the smaller too.
        let z = [0.1f32, 0.4, 0.1, 0.4].map(f32::ln);
        for (p, expected) in [(0.3, &[1, 3][..]), (0.75, &[1, 3]), (0.85, &[0, 1, 2, 3])] {
            let mut kept = candidates(&z);
            super::keep_top_p(&mut kept, p);
            assert_eq!(indices(kept), expected, "p = {p}");
        }
    }

    /// Without this, draws could ignore the probabilities, or the step, and still look random.
    #[test]
    fn draws_follow_the_softmax() {
        let probabilities = [0.5f64, 0.2, 0.0625, 0.2375];
        let logits = probabilities.map(|p| (2.0 * p.ln()) as f32);
        let sampling = Sampling { temperature: 2.0, seed: 11, ..Sampling::GREEDY };
        let draws = 20_000;
        let mut counts = [0u32; 4];
        for step in 0..draws {
            counts[pick_of(&logits, sampling, step) as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip(probabilities) {
            let deviation = (f64::from(draws) * p * (1.0 - p)).sqrt();
            assert!((f64::from(count) - f64::from(draws) * p).abs() < 4.0 * deviation, "{counts:?}");
        }
    }

    /// Without this, a row of NaN would end the process while it serves other rows.
    #[test]
    fn a_row_of_nan_still_gives_a_token() {
        let sampling = Sampling { temperature: 1.0, top_k: 2, top_p: 0.5, seed: 3 };
        assert!(pick_of(&[f32::NAN; 5], sampling, 0) < 5);
        assert!(pick_of(&[f32::NAN; 5], Sampling::GREEDY, 0) < 5);
    }

    /// Without this, the largest random number could be rounded to 1, whose score is infinite.
    #[test]
    fn the_largest_draw_is_below_one() {
        let largest = 1.0 - 2f64.powi(-25);
        assert!((0..u32::MAX).any(|step| uniform(0, step, 0) == largest));
    }
}
