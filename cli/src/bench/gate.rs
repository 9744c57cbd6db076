//! What must hold before anything is timed: a fast path that computes something else is not fast, it is wrong.

use std::ops::ControlFlow;

use serde::Serialize;
use touchstone_runtime::device::Device;
use touchstone_runtime::generate::{Generator, Request};
use touchstone_runtime::model::Model;
use touchstone_runtime::plan::{Capacity, LogitRows};
use touchstone_runtime::sampling::Sampling;
use touchstone_runtime::taps::Path;

use super::measure::PROMPT;
use super::subject::{Subject, pass_flops};
use super::{Stop, progress};
use crate::exit::Outcome;

/// The most tokens compared.
const TOKENS_MAX: usize = 32;
/// The most work that the definition may take, about a second of a CPU's: large models are compared over fewer tokens.
const FLOPS_MAX: f64 = 5e10;
/// So many tokens are compared whatever they cost: the second is the first that the cache serves.
const TOKENS_MIN: usize = 4;

/// A token of the definition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    token: u32,
    /// By how much its logit is ahead of the next.
    margin: f64,
}

/// What was compared, and found equal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// Tokens compared.
    pub tokens: usize,
    /// Of them, different ones: a text of one token shows little.
    pub distinct: usize,
    /// Tokens that are equal, over all batch sizes compared; where fewer than `tokens`, the margin decided.
    pub equal: usize,
    /// The margin of the definition's pick where the texts part.
    pub margin: Option<f64>,
}

/// Compares greedy tokens of the fast path, at each batch size, with those of the definition.
///
/// # Errors
/// [`Outcome::Failed`] where they part by more than rounding; what the runtime reports.
pub fn check<D: Device>(device: &mut D, subject: &Subject, batches: &[usize]) -> Result<Checked, Stop> {
    let count = tokens_to_compare(subject);
    progress(format_args!("{}: checking {count} greedy tokens", subject.name));
    let picks = definition(device, subject, count)?;
    let mut texts = Vec::new();
    for &batch in batches {
        texts.extend(fast(device, subject, batch, count)?);
    }
    let margin_min = if device.precision().working_bytes < 4 { 1e-2 } else { 1e-4 };
    compare(&picks, &texts, margin_min).map_err(|problem| Stop {
        outcome: Outcome::Failed,
        problem: format!("{}: nothing was timed: {problem}", subject.name),
    })
}

/// Up to [`TOKENS_MAX`] within the context, whose windows cost no more than [`FLOPS_MAX`].
fn tokens_to_compare(subject: &Subject) -> usize {
    let cost = |count: usize| (1..=count).map(|time| pass_flops(&subject.config, time)).sum::<f64>();
    let affordable = (TOKENS_MIN..=TOKENS_MAX).rev().find(|&count| cost(count) <= FLOPS_MAX);
    affordable.unwrap_or(TOKENS_MIN).min(subject.config.max_position_embeddings)
}

/// Generation as it is defined: every token from a pass over all tokens before it, without the cache, by plain verbs.
fn definition<D: Device>(device: &mut D, subject: &Subject, count: usize) -> Result<Vec<Pick>, Stop> {
    let capacity = Capacity { batch: 1, time: count, logits: LogitRows::Last };
    let mut model = Model::new(device, &subject.config, subject.source(), capacity)?;
    device.taps().set_path(Path::Plain);
    let (mut text, mut picks) = (vec![PROMPT], Vec::new());
    for step in 0..count {
        model.rewind(device, &[step as u32])?;
        model.forward(device, &text)?;
        let margin = margin(&model.read_logits(device, 1)?);
        model.sample(device)?;
        model.take(device, &mut text)?;
        picks.push(Pick { token: text[step + 1], margin });
    }
    device.taps().set_path(Path::Fastest);
    Ok(picks)
}

/// By how much the largest logit is ahead of the second; NaN where one of them is not finite.
fn margin(logits: &[f64]) -> f64 {
    let (mut best, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    for &logit in logits {
        if !logit.is_finite() {
            return f64::NAN;
        }
        (best, second) = if logit > best { (logit, best) } else { (best, second.max(logit)) };
    }
    best - second
}

/// Each sequence's greedy tokens by the path that is timed.
fn fast<D: Device>(
    device: &mut D,
    subject: &Subject,
    batch: usize,
    count: usize,
) -> Result<Vec<Vec<u32>>, Stop> {
    let capacity = Capacity { batch, time: 1, logits: LogitRows::Last };
    let mut model = Model::new(device, &subject.config, subject.source(), capacity)?;
    let mut texts = vec![Vec::new(); batch];
    let request = Request { prompt: &[PROMPT], max_new_tokens: count, sampling: Sampling::GREEDY };
    let requests = vec![request; batch];
    Generator::new(device, &mut model, batch, D::LOOKAHEAD).generate(&requests, |sequence, token| {
        texts[sequence].push(token);
        ControlFlow::Continue(())
    })?;
    Ok(texts)
}

/// Holds every text against the definition: they may part only where its margin is below `margin_min`.
///
/// # Errors
/// What is wrong.
fn compare(picks: &[Pick], texts: &[Vec<u32>], margin_min: f64) -> Result<Checked, String> {
    if let Some(step) = picks.iter().position(|pick| pick.margin.is_nan()) {
        return Err(format!("the logits of token {} are not finite", step + 1));
    }
    let mut tokens: Vec<u32> = picks.iter().map(|pick| pick.token).collect();
    let mut checked = Checked { tokens: picks.len(), distinct: 0, equal: picks.len(), margin: None };
    for text in texts {
        assert_eq!(text.len(), picks.len(), "every text has as many tokens as the definition");
        let Some(step) = text.iter().zip(&tokens).position(|(found, expected)| found != expected) else {
            continue;
        };
        let (Pick { token, margin }, found) = (picks[step], text[step]);
        if margin >= margin_min {
            let number = step + 1;
            return Err(format!(
                "token {number} is {found}, by definition {token} by a margin of {margin:.3e}"
            ));
        }
        if step < checked.equal {
            checked = Checked { equal: step, margin: Some(margin), ..checked };
        }
    }
    tokens.sort_unstable();
    tokens.dedup();
    Ok(Checked { distinct: tokens.len(), ..checked })
}

#[cfg(test)]
mod tests {
    use super::{Pick, compare, margin};

    fn picks(picks: &[(u32, f64)]) -> Vec<Pick> {
        picks.iter().map(|&(token, margin)| Pick { token, margin }).collect()
    }

    /// Without this, a path that computes something else would be timed, and win.
    #[test]
    fn planted_tokens_are_refused_unless_the_margin_is_rounding() {
        let picks = picks(&[(3, 1.0), (7, 1e-6), (3, 0.5)]);
        let good = compare(&picks, &[vec![3, 7, 3], vec![3, 7, 3]], 1e-4).unwrap();
        assert_eq!((good.tokens, good.distinct, good.equal, good.margin), (3, 2, 3, None));
        let tie = compare(&picks, &[vec![3, 7, 3], vec![3, 8, 1]], 1e-4).unwrap();
        assert_eq!((tie.equal, tie.margin), (1, Some(1e-6)));
        let wrong = compare(&picks, &[vec![3, 7, 3], vec![3, 7, 4]], 1e-4).unwrap_err();
        assert_eq!(wrong, "token 3 is 4, by definition 3 by a margin of 5.000e-1");
        assert!(compare(&picks, &[vec![3, 8, 1]], 1e-7).is_err(), "the margin is held against the limit");
    }

    /// Without this, a model whose logits are NaN would pass: its tokens are equal, and mean nothing.
    #[test]
    fn logits_that_are_not_finite_are_refused() {
        assert!(margin(&[1.0, f64::NAN]).is_nan() && margin(&[f64::INFINITY, 1.0]).is_nan());
        let error = compare(&picks(&[(3, 1.0), (0, f64::NAN)]), &[vec![3, 0]], 1e-4).unwrap_err();
        assert_eq!(error, "the logits of token 2 are not finite");
    }

    /// Without this, the second-best logit could be missed where it comes first, and a near tie taken for a clear one.
    #[test]
    fn the_margin_is_to_the_second_best() {
        assert_eq!(margin(&[2.0, 5.0, -1.0]), 3.0);
        assert_eq!(margin(&[5.0, 2.0, 4.0]), 1.0);
        assert_eq!(margin(&[5.0, 5.0]), 0.0);
        assert_eq!(margin(&[5.0]), f64::INFINITY);
    }
}
