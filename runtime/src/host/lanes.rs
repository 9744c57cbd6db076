//! Vector registers of both precisions, over whichever instruction set the processor has.

use pulp::Simd;

use super::dot::{BLOCK, Bf16Block};

/// An element type that vector registers hold. L is the number of elements in one.
pub trait Lanes: Copy + Default + Send + Sync + 'static {
    /// L elements.
    type Register<S: Simd>: Copy;

    /// Registers in a block: `BLOCK` / L.
    fn registers<S: Simd>() -> usize;
    /// L zeros.
    fn zero<S: Simd>(simd: S) -> Self::Register<S>;
    /// L times `x`.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Register<S>;
    /// Register `i` of a block.
    fn register<S: Simd>(simd: S, block: &[Self; BLOCK], i: usize) -> Self::Register<S>;
    /// Register `i` of a block of bfloat16.
    fn widened_register<S: Simd>(simd: S, block: &Bf16Block, i: usize) -> Self::Register<S>;
    /// Adds `x` to register `i` of a block.
    fn add_to<S: Simd>(simd: S, block: &mut [Self; BLOCK], i: usize, x: Self::Register<S>);
    /// a · b + c, rounded once.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Register<S>,
        b: Self::Register<S>,
        c: Self::Register<S>,
    ) -> Self::Register<S>;
    /// a + b.
    fn plus<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Self::Register<S>;
    /// The sum of the L elements, in a fixed order.
    fn sum<S: Simd>(simd: S, a: Self::Register<S>) -> Self;
    /// The sum of the L elements, accumulated in float64.
    fn sum_f64<S: Simd>(simd: S, a: Self::Register<S>) -> f64;
}

impl Lanes for f32 {
    type Register<S: Simd> = S::f32s;

    #[inline(always)]
    fn registers<S: Simd>() -> usize {
        BLOCK / S::F32_LANES
    }

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::f32s {
        simd.splat_f32s(0.0)
    }

    #[inline(always)]
    fn splat<S: Simd>(simd: S, x: Self) -> S::f32s {
        simd.splat_f32s(x)
    }

    #[inline(always)]
    fn register<S: Simd>(_: S, block: &[Self; BLOCK], i: usize) -> S::f32s {
        S::as_simd_f32s(block).0[i]
    }

    #[inline(always)]
    fn widened_register<S: Simd>(simd: S, block: &Bf16Block, i: usize) -> S::f32s {
        let (words, _) = S::as_simd_u32s(&block.0);
        let word = words[i % words.len()];
        simd.transmute_f32s_u32s(if i < words.len() {
            simd.wrapping_dyn_shl_u32s(word, simd.splat_u32s(16))
        } else {
            simd.and_u32s(word, simd.splat_u32s(0xFFFF_0000))
        })
    }

    #[inline(always)]
    fn add_to<S: Simd>(simd: S, block: &mut [Self; BLOCK], i: usize, x: S::f32s) {
        let y = &mut S::as_mut_simd_f32s(block).0[i];
        *y = simd.add_f32s(*y, x);
    }

    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        simd.mul_add_f32s(a, b, c)
    }

    #[inline(always)]
    fn plus<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.add_f32s(a, b)
    }

    #[inline(always)]
    fn sum<S: Simd>(simd: S, a: S::f32s) -> Self {
        simd.reduce_sum_f32s(a)
    }

    #[inline(always)]
    fn sum_f64<S: Simd>(_: S, a: S::f32s) -> f64 {
        let mut lanes = [0.0; BLOCK];
        S::as_mut_simd_f32s(&mut lanes).0[0] = a;
        // In halves, so that all but the last few additions are a vector's.
        let mut sums = [0.0; BLOCK];
        for (sum, lane) in sums.iter_mut().zip(lanes) {
            *sum = f64::from(lane);
        }
        let mut len = S::F32_LANES;
        while len > 1 {
            len /= 2;
            for l in 0..len {
                sums[l] += sums[len + l];
            }
        }
        sums[0]
    }
}

impl Lanes for f64 {
    type Register<S: Simd> = S::f64s;

    #[inline(always)]
    fn registers<S: Simd>() -> usize {
        BLOCK / S::F64_LANES
    }

    #[inline(always)]
    fn zero<S: Simd>(simd: S) -> S::f64s {
        simd.splat_f64s(0.0)
    }

    #[inline(always)]
    fn splat<S: Simd>(simd: S, x: Self) -> S::f64s {
        simd.splat_f64s(x)
    }

    #[inline(always)]
    fn register<S: Simd>(_: S, block: &[Self; BLOCK], i: usize) -> S::f64s {
        S::as_simd_f64s(block).0[i]
    }

    #[inline(always)]
    fn widened_register<S: Simd>(_: S, block: &Bf16Block, i: usize) -> S::f64s {
        // The oracle may be slow: column by column.
        let mut columns = [0.0; BLOCK];
        for (lane, column) in columns[..S::F64_LANES].iter_mut().enumerate() {
            *column = block.get(i * S::F64_LANES + lane).into();
        }
        S::as_simd_f64s(&columns).0[0]
    }

    #[inline(always)]
    fn add_to<S: Simd>(simd: S, block: &mut [Self; BLOCK], i: usize, x: S::f64s) {
        let y = &mut S::as_mut_simd_f64s(block).0[i];
        *y = simd.add_f64s(*y, x);
    }

    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, a: S::f64s, b: S::f64s, c: S::f64s) -> S::f64s {
        simd.mul_add_f64s(a, b, c)
    }

    #[inline(always)]
    fn plus<S: Simd>(simd: S, a: S::f64s, b: S::f64s) -> S::f64s {
        simd.add_f64s(a, b)
    }

    #[inline(always)]
    fn sum<S: Simd>(simd: S, a: S::f64s) -> Self {
        simd.reduce_sum_f64s(a)
    }

    #[inline(always)]
    fn sum_f64<S: Simd>(simd: S, a: S::f64s) -> f64 {
        simd.reduce_sum_f64s(a)
    }
}
