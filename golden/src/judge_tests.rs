//! The judge must be able to say no. Numbers come from a fixed generator, so that every failure replays.

use super::{Comparison, Feed, Ours, Standard, Verdict, judge};
use crate::case::{Output, Rule, Tensor};
use crate::manifest::Dtype;

const ROWS: usize = 300;
const CHANNELS: usize = 1000;

/// A reproducible number in [-1, 1) for an index (SplitMix64).
fn noise(stream: u64, index: usize) -> f64 {
    let mut z = (stream << 32 | index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(stream);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) as i64 as f64 / 2f64.powi(63)
}

/// Truth of size 1 to 2, and a reference whose error is 1e-4: far above rounding.
fn output(dtype: Dtype, rule: Rule) -> Output {
    let truth: Vec<f64> = (0..ROWS * CHANNELS).map(|i| 1.5 + noise(1, i) / 2.0).collect();
    let values = truth.iter().enumerate().map(|(i, t)| t + 1e-4 * noise(2, i)).collect();
    let reference = Tensor { dtype, shape: vec![ROWS, CHANNELS], values };
    Output { name: "y".into(), reference, injected: Some(truth.clone()), truth: Some(truth), rule }
}

/// The truth plus an error of `size`, independent of the reference's.
fn with_error(output: &Output, size: f64) -> Vec<f64> {
    output.truth.as_ref().unwrap().iter().enumerate().map(|(i, t)| t + size * noise(3, i)).collect()
}

fn against(output: &Output, ours: &[f64]) -> Comparison {
    judge(Ours { shape: &[ROWS, CHANNELS], values: ours }, output, Feed::FreeRunning, Standard::Reference)
}

fn as_oracle(output: &Output, ours: &[f64]) -> Comparison {
    judge(Ours { shape: &[ROWS, CHANNELS], values: ours }, output, Feed::FreeRunning, Standard::Oracle)
}

fn gate_output() -> Output {
    output(Dtype::F32, Rule::Gate)
}

/// Without this, a gate that refuses everything would pass the tests below.
#[test]
fn equal_error_passes_with_a_ratio_of_one() {
    let output = gate_output();
    let comparison = against(&output, &with_error(&output, 1e-4));
    assert!(comparison.verdict.passed(), "{comparison:?}");
    assert!((comparison.ratio - 1.0).abs() < 0.05, "{comparison:?}");
    assert!(against(&output, &output.reference.values.clone()).ratio == 1.0);
    assert!(against(&output, &output.truth.clone().unwrap()).verdict.passed());
}

/// Without this, a kernel three times worse than the reference would pass.
#[test]
fn three_times_the_error_fails() {
    let output = gate_output();
    assert!(!against(&output, &with_error(&output, 3e-4)).verdict.passed());
}

/// Without this, a single row, in which no channel and no element can be judged by itself, could hold two and a half times the error.
#[test]
fn one_row_is_judged_as_a_whole() {
    let mut output = gate_output();
    let ours = with_error(&output, 2.5e-4)[..CHANNELS].to_vec();
    output.reference.shape = vec![1, CHANNELS];
    output.reference.values.truncate(CHANNELS);
    output.truth.as_mut().unwrap().truncate(CHANNELS);
    let ours = Ours { shape: &[1, CHANNELS], values: &ours };
    let comparison = judge(ours, &output, Feed::FreeRunning, Standard::Reference);
    assert_eq!(comparison.verdict, Verdict::Fail(format!("error ratio {:.3}, allowed 2", comparison.ratio)));
}

/// Without this, one NaN or infinity anywhere would pass, as in comparators built on `diff > tolerance`.
#[test]
fn a_value_that_is_not_finite_never_passes() {
    let rules = [Rule::Gate, Rule::Exact, Rule::Greedy { margins: vec![0.0; ROWS * CHANNELS] }];
    for rule in rules {
        let output = output(Dtype::F32, rule);
        for bad in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for element in [0, 1, CHANNELS - 1, 3 * CHANNELS + 17, ROWS * CHANNELS - 1] {
                let mut ours = output.reference.values.clone();
                ours[element] = bad;
                assert!(!against(&output, &ours).verdict.passed(), "{bad} at {element}");
                assert!(!as_oracle(&output, &ours).verdict.passed(), "{bad} at {element}");
            }
        }
    }
}

/// Without this, a reference or a truth of NaN would make every comparison with it false, hence a pass.
#[test]
fn an_expectation_that_is_not_finite_never_passes() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut output = gate_output();
        let ours = output.reference.values.clone();
        output.reference.values[5] = bad;
        assert!(!against(&output, &ours).verdict.passed());
        let mut output = gate_output();
        output.truth.as_mut().unwrap()[5] = bad;
        assert!(!against(&output, &ours).verdict.passed());
        assert!(!as_oracle(&output, &ours).verdict.passed());
    }
}

/// Without this, a transposed or a shortened result would be compared as far as it goes.
#[test]
fn a_wrong_shape_never_passes() {
    let output = gate_output();
    let values = output.reference.values.clone();
    for shape in [vec![CHANNELS, ROWS], vec![ROWS * CHANNELS], vec![1, ROWS, CHANNELS], vec![]] {
        let ours = Ours { shape: &shape, values: &values };
        assert!(!judge(ours, &output, Feed::FreeRunning, Standard::Reference).verdict.passed(), "{shape:?}");
    }
    assert!(!against(&output, &values[1..]).verdict.passed());
    assert!(!against(&output, &[]).verdict.passed());
}

/// Without this, a channel of wrong values would drown in the tensor's mean.
#[test]
fn one_bad_channel_in_a_thousand_is_found_and_named() {
    let output = gate_output();
    for channel in [0, 613, CHANNELS - 1] {
        let mut ours = output.reference.values.clone();
        for row in 0..ROWS {
            ours[row * CHANNELS + channel] += 1.6e-4;
        }
        let comparison = against(&output, &ours);
        assert!(comparison.ratio < 2.0, "the tensor's mean hides it: {}", comparison.ratio);
        assert!(!comparison.verdict.passed());
        assert_eq!(comparison.worst_channel.unwrap().0, channel);
    }
}

/// Without this, the limit of a channel would not be the one that is specified: 2.4 for 256 rows of 128 channels.
#[test]
fn the_limit_of_a_channel_follows_its_rows() {
    let limit = super::channel_ratio_max;
    assert!((limit(256, 128) - 2.389).abs() < 1e-3);
    assert_eq!(limit(5, 1), 2.0);
    assert!(limit(1, 128) > limit(2, 128));
}

/// Without this, one wrong element would drown in its channel's mean.
#[test]
fn one_bad_element_is_found_and_named() {
    let mut output = gate_output();
    // One column of many rows, so that no channel's mean can show it.
    output.reference.shape = vec![ROWS * CHANNELS, 1];
    let mut ours = output.reference.values.clone();
    ours[4321] += 7e-4;
    let shape = output.reference.shape.clone();
    let ours = Ours { shape: &shape, values: &ours };
    let comparison = judge(ours, &output, Feed::FreeRunning, Standard::Reference);
    assert!(comparison.ratio < 2.0 && comparison.max_ratio > 5.0, "{comparison:?}");
    assert!(!comparison.verdict.passed());
    assert_eq!(comparison.worst.unwrap().element, 4321);
}

/// Without this, a reference that happens to be exact would refuse every float32 kernel, or bf16's rounding would excuse float32's.
#[test]
fn rounding_is_free_and_no_more_than_rounding() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut output = output(dtype, Rule::Gate);
        output.reference.values = output.truth.clone().unwrap();
        let unit = dtype.rounding();
        assert!(against(&output, &with_error(&output, unit)).verdict.passed());
        assert!(!against(&output, &with_error(&output, 8.0 * unit)).verdict.passed());
    }
}

/// Without this, float64's squares would underflow and denormals would compare equal to anything.
#[test]
fn denormals_and_huge_values_are_judged() {
    for scale in [1e-200, 1e200] {
        let mut output = gate_output();
        output.reference.values.iter_mut().for_each(|v| *v *= scale);
        output.truth.as_mut().unwrap().iter_mut().for_each(|v| *v *= scale);
        let error = |size: f64| with_error(&output, size * scale);
        assert!(against(&output, &error(1e-4)).verdict.passed());
        assert!(!against(&output, &error(3e-4)).verdict.passed());
        assert!(!as_oracle(&output, &error(1e-11)).verdict.passed());
        assert!(!against(&output, &vec![0.0; ROWS * CHANNELS]).verdict.passed());
    }
}

/// Without this, a truth of zeros would divide zero by zero.
#[test]
fn zeros_must_be_zeros() {
    let mut output = gate_output();
    output.reference.values.fill(0.0);
    output.truth.as_mut().unwrap().fill(0.0);
    let mut ours = vec![0.0; ROWS * CHANNELS];
    assert!(against(&output, &ours).verdict.passed());
    assert!(as_oracle(&output, &ours).verdict.passed());
    ours[99] = 1e-30;
    assert!(!against(&output, &ours).verdict.passed());
    assert!(!as_oracle(&output, &ours).verdict.passed());
}

/// Without this, a float32 computation could pass as the float64 oracle.
#[test]
fn the_oracle_is_held_to_float64() {
    let output = gate_output();
    assert!(as_oracle(&output, &with_error(&output, 1e-14)).verdict.passed());
    assert!(!as_oracle(&output, &with_error(&output, 1e-11)).verdict.passed());
    assert!(!as_oracle(&output, &output.reference.values.clone()).verdict.passed());
}

/// Without this, the injected check would be held to the free-running truth, which belongs to other inputs.
#[test]
fn the_truth_follows_the_feed() {
    let mut output = gate_output();
    output.injected.as_mut().unwrap().iter_mut().for_each(|v| *v += 1.0);
    let values = output.reference.values.clone();
    let ours = Ours { shape: &[ROWS, CHANNELS], values: &values };
    let ratio = |feed| judge(ours, &output, feed, Standard::Oracle).nmse;
    assert!(ratio(Feed::Injected) > 1e3 * ratio(Feed::FreeRunning));
    output.injected = None;
    assert!(!judge(ours, &output, Feed::Injected, Standard::Reference).verdict.passed());
}

/// Without this, data movement that drops the sign of zero or the last bit would pass.
#[test]
fn exact_means_to_the_bit() {
    let mut output = output(Dtype::F32, Rule::Exact);
    output.reference.values[7] = -0.0;
    let good = output.reference.values.clone();
    assert!(against(&output, &good).verdict.passed());
    for (element, value) in [(7, 0.0), (0, f64::from_bits(good[0].to_bits() + 1)), (ROWS * CHANNELS - 1, 0.0)]
    {
        let mut ours = good.clone();
        ours[element] = value;
        let comparison = against(&output, &ours);
        assert!(!comparison.verdict.passed());
        assert_eq!(comparison.worst.unwrap().element, element);
    }
}

/// Without this, any other text would pass as a near tie, or a real tie would fail.
#[test]
fn greedy_forgives_ties_alone_and_lists_them() {
    let token = |row: usize, step: usize| (row * 10 + step) as f64;
    let values: Vec<f64> = (0..12).map(|i| token(i / 4, i % 4)).collect();
    let mut margins = vec![1.0; 12];
    margins[5] = 0.9e-4;
    let reference = Tensor { dtype: Dtype::U32, shape: vec![3, 4], values: values.clone() };
    let rule = Rule::Greedy { margins };
    let output = Output { name: "generated".into(), reference, truth: None, injected: None, rule };
    let ruling = |ours: &[f64]| {
        judge(Ours { shape: &[3, 4], values: ours }, &output, Feed::FreeRunning, Standard::Reference)
    };
    assert!(ruling(&values).verdict.passed());
    let mut tie = values.clone();
    tie[5..8].fill(77.0);
    let comparison = ruling(&tie);
    assert!(comparison.verdict.passed());
    assert_eq!(comparison.near_ties, [(1, 1)]);
    for element in [0, 3, 4, 6, 11] {
        let mut wrong = values.clone();
        wrong[element] = 77.0;
        assert!(!ruling(&wrong).verdict.passed(), "element {element}");
    }
}
