//! Batch norm of maps, forward and back, with `relu` behind it; its sums over a batch. With channels last a vector holds eight
//! channels of one place; maps stored plane by plane are few and go element by element. Bound by the caches: two or three numbers pass for each that is made, with two to five operations on
//! them. Images come one after the other while what made them is in cache, and the sums of each join the others in `f64`, in
//! the order of the images: neither a batch's length nor the number of threads is heard in them but for the sum itself.

use super::frame::{Frame, PANEL};
use super::vector::{OCTET, Vector};
use super::{Real, Task};

/// Places whose sums are kept apart, so that additions do not wait for each other.
const APART: usize = 2;

/// `y = x scale + shift` of one map by channels; with `relu` its positive part.
pub(crate) struct Affine<'a, T> {
    pub x: (&'a Frame, &'a [T]),
    pub y: (&'a Frame, &'a mut [T]),
    /// As long as the stored channels, as `shift` is.
    pub scale: &'a [T],
    pub shift: &'a [T],
    pub relu: bool,
    /// With `relu`: which elements are positive, a byte a vector in the order of memory, or plane by plane a byte an element; or empty.
    pub positive: &'a mut [u8],
}

impl<T: Real> Affine<'_, T> {
    /// Bytes of [`positive`](Self::positive) for maps of a layout.
    pub fn marks(frame: &Frame) -> usize {
        let elements = frame.h * frame.w * frame.channels();
        if frame.narrow { elements } else { elements / OCTET }
    }

    /// Computes it.
    pub fn compute(self) {
        let (x, y, channels) = (self.x.0, self.y.0, self.x.0.channels());
        let marked = self.positive.is_empty() || self.positive.len() == Self::marks(x);
        assert!(x.narrow == y.narrow && x.shape() == y.shape() && marked);
        assert!(self.x.1.len() >= x.len() && self.y.1.len() >= y.len());
        assert!(self.scale.len() >= channels && self.shift.len() >= channels);
        if x.narrow {
            return self.by_element();
        }
        // SAFETY: all slices are as long as their layouts say, as just checked.
        unsafe { T::dispatch(self) }
    }

    fn by_element(self) {
        let ((x, from), (y, to)) = (self.x, self.y);
        let mut mark = 0;
        for (i, (from_row, to_row)) in x.rows().zip(y.rows()).enumerate() {
            let (scale, shift) = (self.scale[i / x.h], self.shift[i / x.h]);
            for (v, to) in from[from_row].iter().zip(&mut to[to_row]) {
                let v = *v * scale + shift;
                if let Some(byte) = self.positive.get_mut(mark) {
                    *byte = u8::from(v > T::ZERO);
                }
                *to = if self.relu && v <= T::ZERO { T::ZERO } else { v };
                mark += 1;
            }
        }
    }
}

impl<T: Real> Task<T> for Affine<'_, T> {
    /// # Safety
    /// Slices are as long as [`Affine::compute`] checks.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let channels = self.x.0.channels();
        let (from, to) = (self.x.1.as_ptr(), self.y.1.as_mut_ptr());
        let (scale, shift) = (self.scale.as_ptr(), self.shift.as_ptr());
        let mut mark = 0;
        for y in 0..self.x.0.h {
            for x in 0..self.x.0.w {
                let (source, target) = (self.x.0.at(y, x), self.y.0.at(y, x));
                for c in (0..channels).step_by(V::LANES) {
                    // SAFETY: a place and channels of both maps, and of the numbers of channels; marks are as many as `marks` says.
                    unsafe {
                        // Rounded before the shift is added, as layer by layer.
                        let zero = V::splat(T::ZERO);
                        let scaled = V::load(from.add(source + c)).mul_add(V::load(scale.add(c)), zero);
                        let mut v = scaled.add(V::load(shift.add(c)));
                        if self.relu {
                            if !self.positive.is_empty() {
                                v.mark_positive(self.positive.as_mut_ptr().add(mark));
                            }
                            v = v.relu();
                        }
                        v.store(to.add(target + c));
                    }
                    mark += V::LANES / OCTET;
                }
            }
        }
    }
}

/// The gradient at a norm's input, of one map: `dx = a dy + b (x - mean) + d` by channels; written, or added.
pub(crate) struct Gradient<'a, T> {
    pub x: (&'a Frame, &'a [T]),
    pub dy: Masked<'a, T>,
    pub dx: (&'a Frame, &'a mut [T]),
    /// `a`, `b`, `d`, `mean`, each as long as the stored channels.
    pub by: [&'a [T]; 4],
    pub add: bool,
}

/// The gradient of a map, where `positive` has a bit set, or everywhere if it is empty.
#[derive(Clone, Copy)]
pub(crate) struct Masked<'a, T> {
    pub frame: &'a Frame,
    pub values: &'a [T],
    pub positive: &'a [u8],
}

impl<T: Real> Masked<'_, T> {
    /// Whether slices are as long as the layout says, for a map like `x`.
    fn fits(&self, x: &Frame) -> bool {
        let marked = self.positive.is_empty() || self.positive.len() == Affine::<T>::marks(x);
        let shaped = self.frame.narrow == x.narrow && self.frame.shape() == x.shape();
        shaped && marked && self.values.len() >= self.frame.len()
    }

    /// The elements of a map stored plane by plane.
    fn elements(&self) -> impl Iterator<Item = T> {
        let values = self.frame.rows().flat_map(|row| &self.values[row]);
        values
            .enumerate()
            .map(|(i, v)| v.keep_if(self.positive.get(i).is_none_or(|byte| *byte == 1)))
    }

    /// # Safety
    /// `at` is a place of the map that [`fits`](Self::fits), `mark` the number of its first octet, `c` a multiple of the lanes below
    /// the stored channels.
    #[inline(always)]
    unsafe fn load<V: Vector<T = T>>(&self, at: usize, mark: usize, c: usize) -> V {
        // SAFETY: the caller's.
        unsafe {
            let v = V::load(self.values.as_ptr().add(at + c));
            match self.positive.is_empty() {
                true => v,
                false => v.keep(self.positive.as_ptr().add(mark + c / OCTET)),
            }
        }
    }
}

impl<T: Real> Gradient<'_, T> {
    /// Computes it.
    pub fn compute(self) {
        let (x, dx) = (self.x.0, self.dx.0);
        assert!(self.dy.fits(x) && dx.narrow == x.narrow && dx.shape() == x.shape());
        assert!(self.x.1.len() >= x.len() && self.dx.1.len() >= dx.len());
        assert!(self.by.iter().all(|numbers| numbers.len() >= x.channels()));
        if x.narrow {
            return self.by_element();
        }
        // SAFETY: all slices are as long as their layouts say, as just checked.
        unsafe { T::dispatch(self) }
    }

    fn by_element(self) {
        let ((x, from), (frame, dx)) = (self.x, self.dx);
        let mut dy = self.dy.elements();
        for (i, (x_row, dx_row)) in x.rows().zip(frame.rows()).enumerate() {
            let [a, b, d, mean] = self.by.map(|numbers| numbers[i / x.h]);
            for ((v, dx), dy) in from[x_row].iter().zip(&mut dx[dx_row]).zip(&mut dy) {
                let v = a * dy + (b * (*v - mean) + d);
                *dx = if self.add { *dx + v } else { v };
            }
        }
    }
}

impl<T: Real> Task<T> for Gradient<'_, T> {
    /// # Safety
    /// Slices are as long as [`Gradient::compute`] checks.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let channels = self.x.0.channels();
        let (from, to) = (self.x.1.as_ptr(), self.dx.1.as_mut_ptr());
        let [a, b, d, mean] = self.by.map(<[T]>::as_ptr);
        let mut mark = 0;
        for y in 0..self.x.0.h {
            for x in 0..self.x.0.w {
                let (at, dy, dx) = (self.x.0.at(y, x), self.dy.frame.at(y, x), self.dx.0.at(y, x));
                for c in (0..channels).step_by(V::LANES) {
                    // SAFETY: a place and channels of all maps, and of the numbers of channels.
                    unsafe {
                        let g: V = self.dy.load(dy, mark, c);
                        let apart = V::load(from.add(at + c)).sub(V::load(mean.add(c)));
                        let shifted = apart.mul_add(V::load(b.add(c)), V::load(d.add(c)));
                        let mut v = g.mul_add(V::load(a.add(c)), shifted);
                        let to = to.add(dx + c);
                        if self.add {
                            v = V::load(to).add(v);
                        }
                        v.store(to);
                    }
                }
                mark += channels / OCTET;
            }
        }
    }
}

/// What is summed over the places of a map, for `N` sums at once.
///
/// # Safety
/// `term` may be called with every place of the map and every vector of its stored channels.
unsafe trait Terms<T: Real, const N: usize> {
    /// The layout.
    fn frame(&self) -> &Frame;
    /// # Safety
    /// The place, the number of its first octet, and a multiple of the lanes below the stored channels.
    unsafe fn term<V: Vector<T = T>>(&self, place: (usize, usize), mark: usize, c: usize) -> [V; N];
}

/// Adds the sums over one map to `sums`, each as long as the stored channels.
struct Sum<'a, S, const N: usize> {
    terms: S,
    sums: [&'a mut [f64]; N],
}

impl<T: Real, S: Terms<T, N>, const N: usize> Task<T> for Sum<'_, S, N> {
    /// # Safety
    /// The sums are as long as the stored channels.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let frame = *self.terms.frame();
        let octets = frame.channels() / OCTET;
        for c in (0..frame.channels()).step_by(PANEL) {
            // SAFETY: places and channels of the map.
            unsafe {
                // Of a panel, as one vector or two.
                let mut sums = [[[V::splat(T::ZERO); 2]; N]; APART];
                for y in 0..frame.h {
                    for x in (0..frame.w).step_by(APART) {
                        for (i, sums) in sums.iter_mut().enumerate() {
                            if x + i < frame.w {
                                let mark = (y * frame.w + x + i) * octets;
                                for half in 0..PANEL / V::LANES {
                                    let terms: [V; N] = self.terms.term((y, x + i), mark, c + half * V::LANES);
                                    for (sum, term) in sums.iter_mut().zip(terms) {
                                        sum[half] = sum[half].add(term);
                                    }
                                }
                            }
                        }
                    }
                }
                let [first, second] = sums;
                for (n, (a, b)) in first.into_iter().zip(second).enumerate() {
                    for half in 0..PANEL / V::LANES {
                        let mut lanes = [T::ZERO; PANEL];
                        a[half].add(b[half]).store(lanes.as_mut_ptr());
                        let to = &mut self.sums[n][c + half * V::LANES..];
                        to.iter_mut()
                            .zip(&lanes[..V::LANES])
                            .for_each(|(to, v)| *to += v.to_f64());
                    }
                }
            }
        }
    }
}

/// `x`, or its squared distance from a centre.
struct Values<'a, T> {
    frame: &'a Frame,
    values: &'a [T],
    center: Option<&'a [T]>,
}

// SAFETY: `moments` checks the lengths.
unsafe impl<T: Real> Terms<T, 1> for Values<'_, T> {
    fn frame(&self) -> &Frame {
        self.frame
    }

    #[inline(always)]
    unsafe fn term<V: Vector<T = T>>(&self, (y, x): (usize, usize), _: usize, c: usize) -> [V; 1] {
        // SAFETY: the caller's.
        unsafe {
            let v = V::load(self.values.as_ptr().add(self.frame.at(y, x) + c));
            let Some(center) = self.center else { return [v] };
            let apart = v.sub(V::load(center.as_ptr().add(c)));
            [apart.mul_add(apart, V::splat(T::ZERO))]
        }
    }
}

/// `dy` and `dy (x - mean)`.
struct Products<'a, T> {
    x: (&'a Frame, &'a [T]),
    dy: Masked<'a, T>,
    mean: &'a [T],
}

// SAFETY: `products` checks the lengths.
unsafe impl<T: Real> Terms<T, 2> for Products<'_, T> {
    fn frame(&self) -> &Frame {
        self.x.0
    }

    #[inline(always)]
    unsafe fn term<V: Vector<T = T>>(&self, (y, x): (usize, usize), mark: usize, c: usize) -> [V; 2] {
        // SAFETY: the caller's.
        unsafe {
            let g: V = self.dy.load(self.dy.frame.at(y, x), mark, c);
            let apart = V::load(self.x.1.as_ptr().add(self.x.0.at(y, x) + c)).sub(V::load(self.mean.as_ptr().add(c)));
            [g, g.mul_add(apart, V::splat(T::ZERO))]
        }
    }
}

/// Number of places, mean, and sum of squared distances from it, of every stored channel of some maps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moments {
    places: f64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    /// Of no maps, of a layout of so many stored channels.
    pub fn none(channels: usize) -> Self {
        Self {
            places: 0.,
            mean: vec![0.; channels],
            squares: vec![0.; channels],
        }
    }

    /// Of one map: its mean, and distances from that, while it is in cache.
    pub fn of<T: Real>(frame: &Frame, values: &[T]) -> Self {
        assert!(values.len() >= frame.len());
        let mut moments = Self::none(frame.channels());
        moments.places = (frame.h * frame.w) as f64;
        if frame.narrow {
            let rows = |f: &mut dyn FnMut(usize, f64)| {
                let rows = frame.rows().enumerate();
                rows.for_each(|(i, row)| values[row].iter().for_each(|v| f(i / frame.h, v.to_f64())));
            };
            rows(&mut |c, v| moments.mean[c] += v / moments.places);
            rows(&mut |c, v| moments.squares[c] += (v - moments.mean[c]) * (v - moments.mean[c]));
            return moments;
        }
        let values = |center| Values { frame, values, center };
        // SAFETY: the map is as long as its layout says, the sums and the centre as its channels.
        unsafe {
            T::dispatch(Sum {
                terms: values(None),
                sums: [&mut moments.mean],
            });
            moments.mean.iter_mut().for_each(|v| *v /= moments.places);
            let center: Vec<T> = moments.mean.iter().map(|v| T::from_f64(*v)).collect();
            T::dispatch(Sum {
                terms: values(Some(&center)),
                sums: [&mut moments.squares],
            });
        }
        moments
    }

    /// Takes further maps in (Chan, Golub and LeVeque 1979).
    pub fn add(&mut self, other: &Self) {
        let places = self.places + other.places;
        if places == 0. {
            return;
        }
        let share = other.places / places;
        let own = self.mean.iter_mut().zip(&mut self.squares);
        for ((mean, squares), (other_mean, other_squares)) in own.zip(other.mean.iter().zip(&other.squares)) {
            let apart = other_mean - *mean;
            *mean += apart * share;
            *squares += other_squares + apart * apart * share * self.places;
        }
        self.places = places;
    }

    /// Number of places, and mean and biased variance of each channel.
    pub fn finish(self) -> (f64, Vec<f64>, Vec<f64>) {
        let Self { places, mean, squares } = self;
        let variance = squares.into_iter().map(|v| v / places).collect();
        (places, mean, variance)
    }
}

/// Adds `dy` and `dy (x - mean)`, summed over one map, to `sums`; these and `mean` are as long as the stored
/// channels.
pub(crate) fn add_products<T: Real>(x: (&Frame, &[T]), dy: Masked<T>, mean: &[T], sums: [&mut [f64]; 2]) {
    let channels = x.0.channels();
    assert!(dy.fits(x.0) && x.1.len() >= x.0.len() && mean.len() >= channels);
    assert!(sums.iter().all(|sums| sums.len() >= channels));
    if x.0.narrow {
        let [by_one, by_apart] = sums;
        let mut dy = dy.elements();
        for (i, row) in x.0.rows().enumerate() {
            let c = i / x.0.h;
            for (v, dy) in x.1[row].iter().zip(&mut dy) {
                by_one[c] += dy.to_f64();
                by_apart[c] += (dy * (*v - mean[c])).to_f64();
            }
        }
        return;
    }
    // SAFETY: all slices are as long as their layouts say, as just checked.
    unsafe {
        T::dispatch(Sum {
            terms: Products { x, dy, mean },
            sums,
        });
    }
}
