//! Many numbers at a time: sixteen with AVX-512, eight with AVX2 and fused multiply-adds, portable loops over eight elsewhere
//! and for `f64`. Kernels are written once over [`Vector`]; [`Real::dispatch`] picks the instance.
//!
//! A number is the same sum in the same order in all of them, but for the [dot products](super::dots), whose order follows the
//! lanes; the portable one rounds a product before it adds (on ARM the compiler turns its loops into NEON).

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use super::Real;
#[cfg(test)]
use super::frame::PANEL;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use portable::Portable;

/// Numbers that marks are kept for: a byte, a bit a number, or eight bytes. Every vector is some of these.
pub(crate) const OCTET: usize = 8;

/// Index, within a 2 x 2 block, that stands for "no element": nothing in the block was positive.
pub(crate) const NONE: u8 = 4;

/// Numbers of one type.
///
/// # Safety
/// Kernels leave room for [`LANES`](Vector::LANES) numbers and no more: an implementation must read and write exactly those in
/// [`load`](Vector::load) and [`store`](Vector::store), as many marks as their functions say, and may ask nothing of its callers but
/// what these say and a processor with its instructions. Callers of every function: an instance may be used only where the
/// processor has its instructions, that is, inside [`Task::run`].
pub(crate) unsafe trait Vector: Copy {
    type T: Real;
    /// Eight numbers of the same processor.
    type Octet: Octet<T = Self::T>;
    /// Numbers: [`OCTET`], or the [panel's](super::frame::PANEL).
    const LANES: usize;
    /// Rows of a tile of products two vectors wide: their sums, two weights and a factor fill the registers there are.
    const ROWS: usize;
    /// Reads numbers from `from`.
    ///
    /// # Safety
    /// `from` is good for reads of [`LANES`](Vector::LANES) numbers and aligned as one of them.
    unsafe fn load(from: *const Self::T) -> Self;
    /// Writes the numbers to `to`.
    ///
    /// # Safety
    /// `to` is good for writes of [`LANES`](Vector::LANES) numbers and aligned as one of them.
    unsafe fn store(self, to: *mut Self::T);
    unsafe fn splat(value: Self::T) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * b + c`.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `max(self, 0)`, NaN stays NaN.
    unsafe fn relu(self) -> Self;
    /// Writes a bit a lane: whether it is above 0.
    ///
    /// # Safety
    /// `to` is good for writes of a byte an octet.
    unsafe fn mark_positive(self, to: *mut u8);
    /// Whether every lane is as large as the other's.
    unsafe fn equals(self, other: Self) -> bool;
    /// The lanes whose bit is set, 0 in the others.
    ///
    /// # Safety
    /// `marks` is good for reads of a byte an octet.
    unsafe fn keep(self, marks: *const u8) -> Self;
    /// Itself, or zeros.
    unsafe fn keep_if(self, keep: bool) -> Self;
    /// The largest of four (NaN if one is NaN), and writes, a byte a lane, the index of the first that holds it. With
    /// `RELU`, of their positive parts, and the index is [`NONE`] where none is positive.
    ///
    /// # Safety
    /// `indices` is good for writes of eight bytes an octet, of any alignment, or null: then none are written.
    unsafe fn largest<const RELU: bool>(block: [Self; 4], indices: *mut u8) -> Self;
    /// The lanes whose byte is `index`, 0 in the others.
    ///
    /// # Safety
    /// `indices` is good for reads of eight bytes an octet, of any alignment.
    unsafe fn select(self, indices: *const u8, index: u8) -> Self;
    /// The sum of its octets.
    unsafe fn fold(self) -> Self::Octet;
}

/// Eight numbers.
///
/// # Safety
/// As for [`Vector`], whose [`LANES`](Vector::LANES) are eight.
pub(crate) unsafe trait Octet: Vector {
    /// Rows to columns.
    unsafe fn transpose(rows: [Self; OCTET]) -> [Self; OCTET];
}

/// A kernel with its arguments, to be run with the best vectors there are for `T`.
pub(crate) trait Task<T: Real> {
    /// Runs it. Implementations are `#[inline(always)]`, so that they are compiled for the vectors' processor.
    ///
    /// # Safety
    /// What the implementation asks of its arguments must hold.
    unsafe fn run<V: Vector<T = T>>(self);
}

/// Sets of instructions that kernels are compiled for, each one's beginning with the former's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernels {
    /// What every processor of this kind has.
    Portable,
    /// x86: eight `f32` a vector, fused multiply-adds.
    Avx2,
    /// x86: sixteen `f32` a vector (AVX-512 F, VL, BW and DQ).
    Avx512,
}

impl Kernels {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The best that this processor has.
    pub fn best() -> Self {
        // Miri interprets the portable kernels.
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") {
                let wide = has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq");
                return if wide { Self::Avx512 } else { Self::Avx2 };
            }
        }
        Self::Portable
    }

    /// Its name in `ADVAE_KERNELS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// What the variable `ADVAE_KERNELS` asks for, or else the best.
    ///
    /// # Errors
    /// Where it is none of the names, or a set that this processor lacks.
    pub fn asked() -> Result<Self, String> {
        static ASKED: OnceLock<Result<Kernels, String>> = OnceLock::new();
        let read = || match std::env::var("ADVAE_KERNELS") {
            Ok(name) => name.parse().map_err(|e| format!("ADVAE_KERNELS: {e}")),
            Err(_) => Ok(Self::best()),
        };
        ASKED.get_or_init(read).clone()
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kernels {
    type Err = String;

    /// A name, of a set that this processor has.
    fn from_str(name: &str) -> Result<Self, String> {
        let best = Self::best();
        match Self::ALL.into_iter().find(|kernels| kernels.name() == name) {
            Some(kernels) if kernels <= best => Ok(kernels),
            Some(_) => Err(format!("this processor has no '{name}', the best it has is '{best}'")),
            None => Err(format!("'{name}' is none of portable, avx2, avx512")),
        }
    }
}

/// What a thread runs: a set, or in tests the portable form of sixteen numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Set(Kernels),
    #[cfg(test)]
    Sixteen,
}

thread_local! {
    static CHOSEN: Cell<Option<Choice>> = const { Cell::new(None) };
}

/// Runs `f` with every kernel called from this thread in a given form, or in the best this processor has if that is less.
/// Results agree with other forms within rounding. `ADVAE_KERNELS=portable` does the same for a whole process.
pub fn with_kernels<R>(kernels: Kernels, f: impl FnOnce() -> R) -> R {
    with_choice(Choice::Set(kernels.min(Kernels::best())), f)
}

/// The same for any choice, to hand one on to threads that work for this one.
pub(crate) fn with_choice<R>(choice: Choice, f: impl FnOnce() -> R) -> R {
    let _restore = Restore(CHOSEN.replace(Some(choice)));
    f()
}

/// Puts the former choice back, also on a panic.
struct Restore(Option<Choice>);

impl Drop for Restore {
    fn drop(&mut self) {
        CHOSEN.set(self.0);
    }
}

/// What kernels called from this thread run.
#[inline]
pub(crate) fn choice() -> Choice {
    // What asks for the impossible is refused where a plugin is made: here it is as good as nothing.
    let asked = || Choice::Set(Kernels::asked().unwrap_or_else(|_| Kernels::best()));
    CHOSEN.get().unwrap_or_else(asked)
}

/// The form of the kernels that are called from this thread.
pub fn kernels() -> Kernels {
    match choice() {
        Choice::Set(kernels) => kernels,
        #[cfg(test)]
        Choice::Sixteen => Kernels::Portable,
    }
}

/// Runs `task` in `f32`.
///
/// # Safety
/// As for [`Task::run`].
pub(crate) unsafe fn dispatch_f32(task: impl Task<f32>) {
    // SAFETY: the processor has what a choice names; the rest is the caller's.
    unsafe {
        match choice() {
            #[cfg(target_arch = "x86_64")]
            Choice::Set(Kernels::Avx512) => avx512::run(task),
            #[cfg(target_arch = "x86_64")]
            Choice::Set(Kernels::Avx2) => avx2::run(task),
            Choice::Set(_) => task.run::<Portable<f32, OCTET>>(),
            #[cfg(test)]
            Choice::Sixteen => task.run::<Portable<f32, PANEL>>(),
        }
    }
}

/// Runs `task` in `f64`.
///
/// # Safety
/// As for [`Task::run`].
pub(crate) unsafe fn dispatch_f64(task: impl Task<f64>) {
    // SAFETY: the caller's.
    unsafe {
        match choice() {
            #[cfg(test)]
            Choice::Sixteen => task.run::<Portable<f64, PANEL>>(),
            _ => task.run::<Portable<f64, OCTET>>(),
        }
    }
}

/// All forms that this processor has.
#[cfg(test)]
pub(crate) fn choices() -> Vec<Choice> {
    let sets = Kernels::ALL.into_iter().filter(|kernels| *kernels <= Kernels::best());
    sets.map(Choice::Set).chain([Choice::Sixteen]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors that stand side by side.
    const VECTORS: usize = 8;

    /// Every operation on one set of numbers.
    struct Everything<'a>(&'a mut Vec<[f32; PANEL]>);

    impl Task<f32> for Everything<'_> {
        #[inline(always)]
        unsafe fn run<V: Vector<T = f32>>(self) {
            // Vectors of eight take the numbers of each sixteen in two goes.
            for first in (0..PANEL).step_by(V::LANES) {
                // SAFETY: the processor is the vector's.
                let results: Vec<V> = unsafe { operations(first) };
                self.0.resize(results.len(), [0.; PANEL]);
                for (v, to) in results.into_iter().zip(self.0.iter_mut()) {
                    // SAFETY: every vector fits behind `first`.
                    unsafe { v.store(to[first..].as_mut_ptr()) };
                }
            }
        }
    }

    fn number(i: usize) -> f32 {
        ((i * 37 % (VECTORS * PANEL)) as f32 - 60.0) / 7.0
    }

    #[inline(always)]
    unsafe fn operations<V: Vector<T = f32>>(first: usize) -> Vec<V> {
        let values: Vec<f32> = (0..VECTORS * PANEL).map(number).collect();
        // SAFETY: every vector lies in the values; there are marks and indices for sixteen numbers.
        unsafe {
            let rows: [V; VECTORS] = std::array::from_fn(|i| V::load(values[i * PANEL + first..].as_ptr()));
            let said = |said: bool| V::splat(f32::from(u8::from(said)));
            let mut marks = [0u8; 2];
            rows[4].mark_positive(marks.as_mut_ptr());
            let mut results = vec![
                rows[0].add(rows[1]),
                rows[0].sub(V::splat(2.5)),
                rows[0].mul_add(V::splat(2.0), rows[2]),
                rows[3].relu(),
                rows[4].keep([0b1011_0010u8, 0b0101_0001][first / OCTET..].as_ptr()),
                rows[4].keep(marks.as_ptr()),
                rows[4].keep_if(true),
                rows[4].keep_if(false),
                said(V::splat(-0.0).equals(V::splat(0.0))),
                said(rows[4].equals(rows[4].keep([0x7f, 0x7f].as_ptr()))),
            ];
            for block in [[0, 1, 2, 3], [5, 5, 6, 5]].map(|block: [usize; 4]| block.map(|i| rows[i])) {
                let mut indices = [0u8; PANEL];
                let chosen = |indices: &[u8]| [0, 1, 2, 3, NONE].map(|index| rows[7].select(indices.as_ptr(), index));
                results.push(V::largest::<false>(block, indices.as_mut_ptr()));
                results.extend(chosen(&indices));
                results.push(V::largest::<true>(block, indices.as_mut_ptr()));
                results.extend(chosen(&indices));
            }
            // Which element of a block with NaN is chosen does not matter: NaN ends the run.
            let nan = V::splat(f32::NAN);
            for block in [[nan, rows[0], rows[0], rows[0]], [rows[0], nan, nan, rows[0]]] {
                results.push(V::largest::<false>(block, std::ptr::null_mut()));
                results.push(V::largest::<true>(block, std::ptr::null_mut()));
            }
            results.extend([nan.relu(), V::splat(-0.0).relu()]);
            results
        }
    }

    #[test]
    fn all_forms_agree() {
        let of = |choice| {
            let mut results = vec![];
            // SAFETY: the task's own arguments are sound.
            with_choice(choice, || unsafe { dispatch_f32(Everything(&mut results)) });
            results
        };
        let portable = of(Choice::Set(Kernels::Portable));
        assert_eq!(portable[0][3], number(3) + number(PANEL + 3));
        assert!(portable[8] == [1.; PANEL] && portable[9] == [0.; PANEL]);
        for choice in choices() {
            let results = of(choice);
            assert_eq!(results.len(), portable.len());
            for (i, (a, b)) in results.iter().zip(&portable).enumerate() {
                let same = |(a, b): (&f32, &f32)| a.is_nan() && b.is_nan() || (a - b).abs() < 1e-6;
                assert!(a.iter().zip(b).all(same), "{i}: {a:?} {b:?}");
            }
        }
    }

    /// Eight rows to columns, and a vector as the sum of its octets.
    struct Turned<'a>(&'a mut Vec<f32>);

    impl Task<f32> for Turned<'_> {
        #[inline(always)]
        unsafe fn run<V: Vector<T = f32>>(self) {
            let values: Vec<f32> = (0..OCTET * OCTET).map(number).collect();
            // SAFETY: every vector lies in the values, and `out` holds an octet.
            unsafe {
                let rows: [V::Octet; OCTET] = std::array::from_fn(|i| V::Octet::load(values[i * OCTET..].as_ptr()));
                let folded = V::load(values.as_ptr()).fold();
                for v in Octet::transpose(rows).into_iter().chain([folded]) {
                    let mut out = [0.0; OCTET];
                    v.store(out.as_mut_ptr());
                    self.0.extend(out);
                }
                self.0.push(V::LANES as f32);
            }
        }
    }

    #[test]
    fn octets_are_turned_over_and_folded() {
        for choice in choices() {
            let mut results = vec![];
            // SAFETY: the task's own arguments are sound.
            with_choice(choice, || unsafe { dispatch_f32(Turned(&mut results)) });
            let lanes = results.pop().unwrap_or_default() as usize;
            let (columns, folded) = results.split_at(OCTET * OCTET);
            for (i, v) in columns.iter().enumerate() {
                assert_eq!(*v, number(i % OCTET * OCTET + i / OCTET));
            }
            for (i, v) in folded.iter().enumerate() {
                let sum: f32 = (i..lanes).step_by(OCTET).map(number).sum();
                assert!((v - sum).abs() < 1e-6, "{i}");
            }
        }
    }

    #[test]
    fn sets_have_names_and_the_unknown_is_refused() {
        assert_eq!("portable".parse(), Ok(Kernels::Portable));
        let unknown = "sse".parse::<Kernels>().unwrap_err();
        assert_eq!(unknown, "'sse' is none of portable, avx2, avx512");
        if Kernels::best() < Kernels::Avx512 {
            let lacking = "avx512".parse::<Kernels>().unwrap_err();
            assert!(
                lacking.contains("no 'avx512'") && lacking.contains(Kernels::best().name()),
                "{lacking}"
            );
        }
    }

    #[test]
    fn a_choice_ends_with_its_closure() {
        let before = kernels();
        assert_eq!(with_kernels(Kernels::Portable, kernels), Kernels::Portable);
        assert_eq!(with_kernels(Kernels::Avx512, kernels), Kernels::best());
        assert_eq!(kernels(), before);
    }
}
