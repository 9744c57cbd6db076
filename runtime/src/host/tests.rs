//! What the golden cases cannot show: independence of the batch, of threads and of the instruction set, and the edges.

use std::borrow::Cow;

use super::dot::BLOCK;
use super::{Host, Weight, attention, linear};
use crate::backend::{AttentionShape, Backend, LinearShape, OUTBOX_ROWS, Rows, Step};
use crate::config::Config;
use crate::generate::capacity;
use crate::model::Model;
use crate::modules::Norm;
use crate::plan::{Entry, Kind};
use crate::taps::Path;
use crate::weights::{RandomWeights, Tensor, Values};

/// More than a hundred float32 roundings of sums near 10 add up to; a wrong operand makes a difference near 1. Accuracy itself is the golden
/// cases' business.
const ROUNDING: f64 = 2e-5;

/// `len` numbers between -1 and 1 that look random.
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (f64::from(state) / f64::from(1u32 << 31) - 1.0) as f32
    };
    (0..len).map(|_| next()).collect()
}

fn weight(shape: &[usize], values: &[f32]) -> Weight<f32> {
    Weight::new(&Tensor { shape: shape.to_vec(), values: Values::F32(Cow::Borrowed(values)) })
}

/// Every instruction set of this processor.
fn instruction_sets() -> Vec<pulp::Arch> {
    let mut sets = vec![pulp::Arch::Scalar, pulp::Arch::new()];
    #[cfg(target_arch = "x86_64")]
    sets.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
    sets
}

/// The largest distance of `actual` from `expected`.
fn distance(actual: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    actual.iter().zip(expected).map(|(&a, &e)| (f64::from(a) - e).abs()).fold(0.0, f64::max)
}

/// Without this, only the widest registers of the machine at hand would ever be tested, and only whole tiles and blocks.
#[test]
fn linear_agrees_with_a_plain_loop_on_every_instruction_set() {
    for (rows, inputs, outputs) in
        [(1, 1, 1), (1, 67, 19), (1, 500, 203), (3, 32, 8), (5, 31, 7), (21, 96, 13)]
    {
        let (x, w) = (numbers(1, rows * inputs), numbers(2, outputs * inputs));
        let bias = numbers(3, outputs);
        let halves: Vec<_> = w.iter().map(|&w| half::bf16::from_f32(w)).collect();
        let shape = LinearShape { rows, inputs, outputs };
        let expected = |w: &dyn Fn(usize) -> f64| -> Vec<f64> {
            let dot = |r: usize, o: usize| {
                (0..inputs).map(|i| f64::from(x[r * inputs + i]) * w(o * inputs + i)).sum::<f64>()
            };
            (0..rows * outputs)
                .map(|i| dot(i / outputs, i % outputs) + f64::from(bias[i % outputs]))
                .collect()
        };
        let stored = Values::Bf16(Cow::Borrowed(&halves[..]));
        let narrow = Weight::new(&Tensor { shape: vec![outputs, inputs], values: stored });
        let bias = weight(&[outputs], &bias);
        for arch in instruction_sets() {
            let mut y = vec![f32::NAN; rows * outputs];
            linear::linear(arch, &mut y, &x, &weight(&[outputs, inputs], &w), Some(&bias), shape);
            assert!(distance(&y, &expected(&|i| w[i].into())) < ROUNDING, "{shape:?} {arch:?}");
            y.fill(f32::NAN);
            linear::linear(arch, &mut y, &x, &narrow, Some(&bias), shape);
            assert!(
                distance(&y, &expected(&|i| halves[i].into())) < ROUNDING,
                "{shape:?} {arch:?}, bfloat16"
            );
        }
    }
}

/// Without this, a sequence could change its text with the batch or the prompt's chunks around it.
#[test]
fn a_row_of_linear_does_not_depend_on_its_neighbours() {
    let (rows, inputs, outputs) = (37, 3 * BLOCK + 5, 23);
    let (x, w) = (numbers(4, rows * inputs), weight(&[outputs, inputs], &numbers(5, outputs * inputs)));
    let run = |x: &[f32]| {
        let shape = LinearShape { rows: x.len() / inputs, inputs, outputs };
        let mut y = vec![f32::NAN; shape.rows * outputs];
        linear::linear(pulp::Arch::new(), &mut y, x, &w, None, shape);
        y
    };
    let alone: Vec<f32> = x.chunks(inputs).flat_map(run).collect();
    assert_eq!(run(&x), alone);
    assert_eq!(run(&x[..6 * inputs]), alone[..6 * outputs]);
}

/// Without this, a head size that is no multiple of a block, or a context longer than one span of scores, could go wrong on a processor
/// that the golden cases never ran on.
#[test]
fn attention_agrees_with_a_plain_loop_on_every_instruction_set() {
    for (batch, time, heads, head_size, past) in [(1, 1, 1, 5, 0), (2, 3, 2, 40, 130), (1, 20, 3, 64, 57)] {
        let context = past + time + 1;
        let shape = AttentionShape { step: Step { batch, time }, heads, head_size, context };
        let channels = shape.channels();
        // The second sequence has cached less.
        let places: Vec<usize> = (0..batch).map(|sequence| past - 7 * sequence).collect();
        let cursor: Vec<u32> = places.iter().flat_map(|&past| [past as u32, 0, time as u32]).collect();
        let q: Vec<f32> = numbers(6, batch * time * channels).iter().map(|q| 8.0 * q).collect();
        let (keys, values) = (numbers(7, shape.cache_len()), numbers(8, shape.cache_len()));
        let mut expected = vec![0.0; q.len()];
        for (i, y) in expected.iter_mut().enumerate() {
            let (row, head, d) = (i / channels, i % channels / head_size, i % head_size);
            let at = |s: usize, d: usize| ((row / time * heads + head) * context + s) * head_size + d;
            let weights: Vec<f64> = (0..=places[row / time] + row % time)
                .map(|s| {
                    let products = (0..head_size).map(|d| {
                        f64::from(q[row * channels + head * head_size + d]) * f64::from(keys[at(s, d)])
                    });
                    (products.sum::<f64>() / (head_size as f64).sqrt()).exp()
                })
                .collect();
            let weighted = weights.iter().enumerate().map(|(s, w)| w * f64::from(values[at(s, d)]));
            *y = weighted.sum::<f64>() / weights.iter().sum::<f64>();
        }
        for arch in instruction_sets() {
            let mut y = vec![f32::NAN; q.len()];
            attention::attention(arch, &mut y, &q, &keys, &values, &cursor, shape);
            assert!(distance(&y, &expected) < ROUNDING, "{shape:?} {arch:?}");
        }
    }
}

/// Without this, the norm of the last positions could read other rows, or padding. Expected: the row (1, 3) has mean 2 and variance 1.
#[test]
fn layernorm_reads_the_rows_it_is_asked_for() {
    let mut host = Host::<f32>::new();
    let norm = Norm { weight: weight(&[2], &[1.0, 10.0]), bias: weight(&[2], &[0.5, 0.0]), eps: 1e-12 };
    let x = vec![1.0, 3.0, 7.0, 9.0, -5.0, 8.0, 3.0, 1.0];
    let mut y = vec![f32::NAN; 6];
    let rows = Rows::Last { step: Step { batch: 2, time: 2 }, cursor: &vec![5, 7, 1, 5, 7, 2] };
    host.layernorm(&mut y, &x, &norm, rows, 2).unwrap();
    assert_eq!(y[..4], [-0.5, 10.0, 1.5, -10.0]);
    assert!(y[4].is_nan(), "only the rows asked for are written");
}

/// Without this, an id beyond the table could read another token's row, or end the process; and a sequence could stand where another does.
#[test]
fn embedding_marks_what_the_tables_lack() {
    let mut host = Host::<f32>::new();
    let (token, position) = (weight(&[2, 1], &[10.0, 20.0]), weight(&[3, 1], &[1.0, 2.0, 3.0]));
    let mut y = vec![0.0; 4];
    let step = Step { batch: 2, time: 2 };
    host.embedding(&mut y, &vec![1, 2, 0, 1], &token, Some(&position), &vec![1, 0, 2, 0, 0, 2], step, 1)
        .unwrap();
    assert!(y[1].is_nan());
    assert_eq!([y[0], y[2], y[3]], [22.0, 11.0, 22.0]);
    host.embedding(&mut y, &vec![1, 1, 0, 1], &token, Some(&position), &vec![2, 0, 2, 1, 0, 2], step, 1)
        .unwrap();
    assert!(y[1].is_nan());
    assert_eq!([y[0], y[2], y[3]], [23.0, 12.0, 23.0]);
}

/// Without this, tokens could reach the reader out of order, or a cursor could stand still.
#[test]
fn sampled_tokens_leave_in_order_and_the_cursors_move_on() {
    let mut host = Host::<f32>::new();
    let logits = host.wide(&Entry::new("logits", &[2, 3], Kind::Wide)).unwrap();
    let mut outbox = host.outbox(OUTBOX_ROWS, 2).unwrap();
    let (mut tokens, mut cursor) = (vec![9; 2], vec![5, 7, 4, 9, 2, 1]);
    let mut sample = |host: &mut Host<f32>, outbox: &mut _, logits: &Vec<f32>| {
        host.sample(outbox, &mut tokens, &mut cursor, logits, 2, 3).unwrap();
        (tokens.clone(), cursor.clone())
    };
    let mut taken = Vec::new();
    assert_eq!(
        sample(&mut host, &mut outbox, &vec![0.0, 1.0, 0.5, 3.0, 2.0, 1.0]),
        (vec![1, 0], vec![9, 8, 1, 10, 3, 1])
    );
    assert_eq!(
        sample(&mut host, &mut outbox, &vec![0.0, 0.0, 0.5, 0.0, 2.0, 1.0]),
        (vec![2, 1], vec![10, 9, 1, 11, 4, 1])
    );
    host.take(&mut outbox, &mut taken).unwrap();
    assert_eq!(taken, [1, 0]);
    for _ in 1..OUTBOX_ROWS {
        sample(&mut host, &mut outbox, &logits);
    }
    host.take(&mut outbox, &mut taken).unwrap();
    assert_eq!(taken, [1, 0, 2, 1]);
}

/// Without this, a shape that does not fit could silently compute on part of the data.
#[test]
#[should_panic(expected = "linear: weight: [2, 3] wanted, [3, 2] there")]
fn a_transposed_weight_is_refused() {
    let w = weight(&[3, 2], &numbers(9, 6));
    let shape = LinearShape { rows: 1, inputs: 3, outputs: 2 };
    linear::linear(pulp::Arch::new(), &mut [0.0; 2], &[0.0; 3], &w, None, shape);
}

/// Logits after each of a few tokens of a model whose products are shared among threads.
fn decoded_logits(path: Path) -> Vec<Vec<f64>> {
    let text = r#"{"vocab_size": 1003, "max_position_embeddings": 40, "hidden_size": 132, "num_attention_heads": 3,
        "intermediate_size": 260, "num_hidden_layers": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
        "tie_word_embeddings": true, "model_type": "touchstone_gpt", "dtype": "float32"}"#;
    let config = Config::parse(text, std::path::Path::new("test")).unwrap();
    let mut host = Host::<f32>::new();
    host.taps().set_path(path);
    let mut model = Model::new(&mut host, &config, &RandomWeights::new(4), capacity(40, 1)).unwrap();
    let mut logits = Vec::new();
    for token in [3, 1002, 77, 500] {
        model.forward(&mut host, &[token]).unwrap();
        logits.push(model.read_logits(&mut host, 1).unwrap());
        model.advance();
    }
    logits
}

/// Without this, a fused sublayer could differ from the composition that its specification is, by less than a golden case sees.
#[test]
fn a_fused_sublayer_is_its_plain_composition_to_the_bit() {
    assert_eq!(decoded_logits(Path::Fastest), decoded_logits(Path::Plain));
}
