//! Dot products of a few rows with many: the loop under the matrix product and the attention scores.
//!
//! Whatever the size of a tile, lane l of a register sums the products of columns l, l + L, l + 2L, … in that order, and the L lanes
//! are added at the end: a result depends on its two rows and on the processor's register width, and on nothing else.

use pulp::Simd;

use super::lanes::Lanes;

/// Columns that are stored, and padded, together. A multiple of every register width.
pub(super) const BLOCK: usize = 32;

/// `BLOCK` columns of one row, in a form that comes apart into registers.
pub(super) trait Block<T: Lanes> {
    /// Register `i` of the block: columns i · L to (i + 1) · L.
    fn register<S: Simd>(&self, simd: S, i: usize) -> T::Register<S>;
}

impl<T: Lanes> Block<T> for [T; BLOCK] {
    #[inline(always)]
    fn register<S: Simd>(&self, simd: S, i: usize) -> T::Register<S> {
        T::register(simd, self, i)
    }
}

/// A block that starts at a cache line, so that no load straddles two.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Aligned<T>(pub(super) [T; BLOCK]);

impl<T: Lanes> Block<T> for Aligned<T> {
    #[inline(always)]
    fn register<S: Simd>(&self, simd: S, i: usize) -> T::Register<S> {
        T::register(simd, &self.0, i)
    }
}

/// A block of bfloat16. Word i holds column i in its low half and column i + BLOCK / 2 in its high half, so that one shift or
/// one mask widens a register of words to float32.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Bf16Block(pub(super) [u32; BLOCK / 2]);

impl Bf16Block {
    /// Packs up to `BLOCK` values; the rest is zero.
    pub(super) fn new(values: &[half::bf16]) -> Self {
        let mut columns = [half::bf16::ZERO; BLOCK];
        columns[..values.len()].copy_from_slice(values);
        let (low, high) = columns.split_at(BLOCK / 2);
        let mut words = [0; BLOCK / 2];
        for ((word, low), high) in words.iter_mut().zip(low).zip(high) {
            *word = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
        }
        Self(words)
    }

    /// The value of `column`.
    #[inline(always)]
    pub(super) fn get(&self, column: usize) -> f32 {
        let word = self.0[column % (BLOCK / 2)];
        f32::from_bits(if column < BLOCK / 2 { word << 16 } else { word & 0xFFFF_0000 })
    }
}

impl<T: Lanes> Block<T> for Bf16Block {
    #[inline(always)]
    fn register<S: Simd>(&self, simd: S, i: usize) -> T::Register<S> {
        T::widened_register(simd, self, i)
    }
}

/// Adds the products of the columns of `M` rows `x` and `N` rows `w` to `sums`. All rows have equally many blocks.
#[inline(always)]
pub(super) fn accumulate<S: Simd, T: Lanes, B: Block<T>, const M: usize, const N: usize>(
    simd: S,
    sums: &mut [[T::Register<S>; N]; M],
    mut x: [&[[T; BLOCK]]; M],
    mut w: [&[B]; N],
) {
    // One length for all rows, visible to the compiler: no bounds checks in the loop.
    let blocks = w[0].len();
    for row in &mut x {
        *row = &row[..blocks];
    }
    for row in &mut w {
        *row = &row[..blocks];
    }
    for block in 0..blocks {
        // Spelled out, because the compiler does not unroll a body this large, and bfloat16 needs to know `i`.
        step(simd, sums, &x, &w, block, 0);
        step(simd, sums, &x, &w, block, 1);
        if T::registers::<S>() >= 4 {
            step(simd, sums, &x, &w, block, 2);
            step(simd, sums, &x, &w, block, 3);
        }
        for i in 4..T::registers::<S>() {
            step(simd, sums, &x, &w, block, i);
        }
    }
}

/// [`accumulate`], for register `i` of one block.
#[inline(always)]
fn step<S: Simd, T: Lanes, B: Block<T>, const M: usize, const N: usize>(
    simd: S,
    sums: &mut [[T::Register<S>; N]; M],
    x: &[&[[T; BLOCK]]; M],
    w: &[&[B]; N],
    block: usize,
    i: usize,
) {
    let mut columns = [T::zero(simd); N];
    for n in 0..N {
        columns[n] = w[n][block].register(simd, i);
    }
    for m in 0..M {
        let x = x[m][block].register(simd, i);
        for n in 0..N {
            sums[m][n] = T::mul_add(simd, x, columns[n], sums[m][n]);
        }
    }
}

/// Up to `BLOCK` values, padded with zeros.
#[inline(always)]
pub(super) fn padded<T: Lanes>(values: &[T]) -> [T; BLOCK] {
    let mut block = [T::default(); BLOCK];
    block[..values.len()].copy_from_slice(values);
    block
}
