//! The matrix product.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::dot::{BLOCK, Block, accumulate, padded};
use super::memory::{front, front_mut};
use super::weight::Stored;
use super::{Float, Weight};
use crate::backend::LinearShape;

/// Rows from which on a product is spread over threads, each of which takes a multiple of `ROWS_A_THREAD`. A single row waits for
/// memory rather than for the processor, and waking a thread takes as long as the product.
const PARALLEL_ROWS_MIN: usize = 16;
/// See there.
const ROWS_A_THREAD: usize = 8;

/// y = x · weightᵀ + bias.
///
/// `y: [R, O]`, `x: [R, I]`, `weight: [O, I]`, `bias: [O]` or none. A row's result does not depend on the other rows of the call, nor on
/// the number of threads. Sums accumulate in `T`, in as many partial sums as a register has lanes.
pub(super) fn linear<T: Float>(
    arch: Arch,
    y: &mut [T],
    x: &[T],
    weight: &Weight<T>,
    bias: Option<&Weight<T>>,
    shape: LinearShape,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let y = front_mut("linear: y", y, rows * outputs);
    let x = front("linear: x", x, rows * inputs);
    let there = [weight.rows(), weight.columns()];
    assert!(there == [outputs, inputs], "linear: weight: [{outputs}, {inputs}] wanted, {there:?} there");
    let bias = bias.map(|bias| bias.vector(outputs));
    match weight.stored() {
        Stored::Matrix(blocks) => product(arch, y, x, blocks, bias, shape),
        Stored::Bf16Matrix(blocks) => product(arch, y, x, blocks, bias, shape),
        Stored::Vector(_) => unreachable!("a vector has one row, and its shape was compared"),
    }
}

/// [`linear`], for one kind of block.
fn product<T: Float, B: Block<T> + Sync>(
    arch: Arch,
    y: &mut [T],
    x: &[T],
    weight: &[B],
    bias: Option<&[T]>,
    shape: LinearShape,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    if rows < PARALLEL_ROWS_MIN {
        return arch.dispatch(Product { y, x, weight, bias, shape });
    }
    let rows_a_task = rows.div_ceil(rayon::current_num_threads()).next_multiple_of(ROWS_A_THREAD);
    y.par_chunks_mut(rows_a_task * outputs).zip(x.par_chunks(rows_a_task * inputs)).for_each(|(y, x)| {
        let shape = LinearShape { rows: y.len() / outputs, ..shape };
        arch.dispatch(Product { y, x, weight, bias, shape });
    });
}

/// A product to be computed on one thread.
struct Product<'a, T, B> {
    y: &'a mut [T],
    x: &'a [T],
    /// Rows of `inputs`, padded to whole blocks.
    weight: &'a [B],
    bias: Option<&'a [T]>,
    shape: LinearShape,
}

impl<T: Float, B: Block<T>> WithSimd for Product<'_, T, B> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // As many sums as registers hold, besides the operands: few loads for a multiplication.
        match (self.shape.rows, S::REGISTER_COUNT) {
            (1, _) => self.tiles::<S, 1, 8>(simd),
            (_, 32..) => self.tiles::<S, 4, 4>(simd),
            _ => self.tiles::<S, 2, 4>(simd),
        }
    }
}

impl<T: Float, B: Block<T>> Product<'_, T, B> {
    /// Everything, in tiles of `M` rows and `N` outputs.
    #[inline(always)]
    fn tiles<S: Simd, const M: usize, const N: usize>(&mut self, simd: S) {
        let LinearShape { rows, outputs, .. } = self.shape;
        // Outputs in the outer loop: a weight travels from memory once.
        for output in (0..outputs - outputs % N).step_by(N) {
            for row in (0..rows - rows % M).step_by(M) {
                self.tile::<S, M, N>(simd, row, output);
            }
            for row in rows - rows % M..rows {
                self.tile::<S, 1, N>(simd, row, output);
            }
        }
        for output in outputs - outputs % N..outputs {
            for row in 0..rows {
                self.tile::<S, 1, 1>(simd, row, output);
            }
        }
    }

    /// `M` rows from `row` on, `N` outputs from `output` on.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(&mut self, simd: S, row: usize, output: usize) {
        let LinearShape { inputs, outputs, .. } = self.shape;
        let (whole, blocks) = (inputs / BLOCK, inputs.div_ceil(BLOCK));
        let mut sums = [[T::zero(simd); N]; M];
        let (mut x, mut tails, mut w) = ([&[][..]; M], [&[][..]; M], [&[][..]; N]);
        for m in 0..M {
            (x[m], tails[m]) = self.x[(row + m) * inputs..][..inputs].as_chunks::<BLOCK>();
        }
        for (n, w) in w.iter_mut().enumerate() {
            *w = &self.weight[(output + n) * blocks..][..whole];
        }
        accumulate(simd, &mut sums, x, w);
        if whole < blocks {
            let tails = tails.map(padded);
            for m in 0..M {
                x[m] = std::slice::from_ref(&tails[m]);
            }
            for (n, w) in w.iter_mut().enumerate() {
                *w = &self.weight[(output + n) * blocks + whole..][..1];
            }
            accumulate(simd, &mut sums, x, w);
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let y = &mut self.y[(row + m) * outputs + output..][..N];
            for (n, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
                *y = T::sum(simd, sum) + self.bias.map_or(T::ZERO, |bias| bias[output + n]);
            }
        }
    }
}
