//! The matrix product.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::dot::{BLOCK, Block, accumulate, padded};
use super::memory::{front, front_mut};
use super::weight::Stored;
use super::{Float, Weight};
use crate::backend::LinearShape;
use crate::threads::{pieces, share};

/// Outputs that a thread takes a multiple of, where a product of one row is shared: no tile is cut.
pub(super) const UNIT: usize = 8;

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
    let layer = Layer::new(weight, bias, shape);
    let pieces = pieces(rows * layer.bytes());
    if rows == 1 {
        return share([y], UNIT, pieces, &|first, [y]| layer.outputs_from(arch, first, y, x));
    }
    // Of many rows a thread takes whole tiles; few are better shared evenly.
    let unit = if rows < 2 * UNIT { 1 } else { UNIT };
    share([y], unit * outputs, pieces, &|first, [y]| {
        let row = first / outputs;
        layer.product(arch, y, &x[row * inputs..], 0..outputs);
    });
}

/// A weight and its bias, of shapes that were looked at.
pub(super) struct Layer<'a, T> {
    weight: &'a Weight<T>,
    bias: Option<&'a [T]>,
}

impl<'a, T: Float> Layer<'a, T> {
    /// `weight: [O, I]` and `bias: [O]` or none.
    pub(super) fn new(weight: &'a Weight<T>, bias: Option<&'a Weight<T>>, shape: LinearShape) -> Self {
        let (wanted, there) = ([shape.outputs, shape.inputs], [weight.rows(), weight.columns()]);
        assert!(there == wanted, "linear: weight: {wanted:?} wanted, {there:?} there");
        Self { weight, bias: bias.map(|bias| bias.vector(shape.outputs)) }
    }

    /// Bytes of the weight, which a product reads.
    pub(super) fn bytes(&self) -> usize {
        match self.weight.stored() {
            Stored::Matrix(blocks) => size_of_val(&blocks[..]),
            Stored::Bf16Matrix(blocks) => size_of_val(&blocks[..]),
            Stored::Vector(values) => size_of_val(&values[..]),
        }
    }

    /// Outputs `first`, `first + 1`, … of one row: `y` as many as it holds, `x: [I]`.
    pub(super) fn outputs_from(&self, arch: Arch, first: usize, y: &mut [T], x: &[T]) {
        let outputs = first..first + y.len();
        self.product(arch, y, x, outputs);
    }

    /// These outputs of as many rows as `y: [R, outputs]` holds, on this thread.
    fn product(&self, arch: Arch, y: &mut [T], x: &[T], outputs: Range<usize>) {
        let inputs = self.weight.columns();
        let shape = LinearShape { rows: y.len() / outputs.len(), inputs, outputs: outputs.len() };
        let stored = outputs.start * inputs.div_ceil(BLOCK)..outputs.end * inputs.div_ceil(BLOCK);
        let bias = self.bias.map(|bias| &bias[outputs]);
        match self.weight.stored() {
            Stored::Matrix(all) => arch.dispatch(Product { y, x, weight: &all[stored], bias, shape }),
            Stored::Bf16Matrix(all) => arch.dispatch(Product { y, x, weight: &all[stored], bias, shape }),
            Stored::Vector(_) => unreachable!("a vector has one row, and its shape was compared"),
        }
    }
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
            let mut row = rows - rows % M;
            if M > 2 && rows - row >= 2 {
                self.tile::<S, 2, N>(simd, row, output);
                row += 2;
            }
            if row < rows {
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
