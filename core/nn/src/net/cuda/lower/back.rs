//! The way back, step by step from the last to the first.

use candle_core::{Result, bail};

use super::{B, Back, Buffer, Elementwise, K, Lowering, Post, Way, with};

impl Lowering<'_> {
    /// Marks a gradient as written: whether it was before.
    pub(super) fn write(&mut self, value: usize) -> bool {
        std::mem::replace(&mut self.written[value], true)
    }

    pub(super) fn way_back(&mut self, output: usize) -> Result<()> {
        let (out, outputs) = (self.shapes[output], self.program.outputs);
        if outputs != self.values[output] {
            self.push(
                "give_out",
                self.len(output),
                &[B(self.values[output]), B(outputs)],
                &with(out, &[0]),
            );
            let arguments = [B(self.program.output_slope), B(self.slopes[output])];
            self.push_back("take_in", self.len(output), &arguments, &out);
        }
        self.written[output] = true;
        for step in (0..self.backs.len()).rev() {
            self.back(step, self.backs[step].clone());
        }
        if !self.written[0] {
            bail!("the output does not depend on the images");
        }
        if self.program.image_slope != self.slopes[0] {
            let arguments = [B(self.slopes[0]), B(self.program.image_slope)];
            self.push_back("give_out", self.len(0), &arguments, &with(self.shapes[0], &[0]));
        }
        Ok(())
    }

    pub(super) fn back(&mut self, step: usize, back: Back) {
        match back {
            Back::Conv {
                source,
                target,
                post,
                raw,
                which,
                result,
                way,
            } => {
                let (slope, value) = (self.slopes[target], self.values[target]);
                let [c, h, w] = self.shapes[target];
                let elements = result.iter().product();
                // Of the convolution's result nothing is left; its gradient is another buffer.
                let raw =
                    raw.map(|_| self.gradients[step].unwrap_or_else(|| self.program.buffer(Buffer::Floats(elements))));
                if let Way::Narrow { weight, geometry } = way
                    && self.narrow_back(weight, &geometry, source, target, post)
                {
                    return;
                }
                match (post, raw, which) {
                    _ if self.gradients[step].is_some() => {}
                    (Post::Relu, ..) => self.push_back("relu_back_here", elements, &[B(slope), B(value)], &[]),
                    (Post::Pool { .. }, Some(raw), Some(which)) => {
                        let numbers = [c, h, w, result[1], result[2]];
                        self.push_back("pool_back", elements, &[B(slope), B(which), B(raw)], &numbers);
                    }
                    (Post::Upsample, Some(raw), _) => {
                        self.push_back(
                            "upsample_relu_back",
                            elements,
                            &[B(slope), B(value), B(raw)],
                            &[c, h, w],
                        );
                    }
                    _ => {}
                }
                let add = self.write(source);
                self.go(way, raw.unwrap_or(slope), self.slopes[source], true, add);
            }
            Back::Norm {
                source,
                target,
                scale,
                relu,
            } => {
                let add = self.write(source);
                let arguments = [
                    B(self.slopes[target]),
                    K(scale),
                    B(self.values[target]),
                    B(self.slopes[source]),
                ];
                let numbers = with(self.shapes[target], &[usize::from(relu), usize::from(add)]);
                self.push_back("affine_back", self.len(target), &arguments, &numbers);
            }
            Back::Widen { source, target } => {
                let add = usize::from(self.write(source));
                let arguments = [B(self.slopes[target]), B(self.slopes[source])];
                self.push_back(
                    "take_back",
                    self.len(source),
                    &arguments,
                    &with(self.shapes[source], &[add]),
                );
            }
            Back::Plain {
                sources,
                target,
                operator: Elementwise::Add,
                ..
            } => self.add_back(step, &sources, target),
            Back::Plain {
                sources,
                target,
                operator,
                which,
                scale,
            } => {
                let mut first = 0;
                for source in sources {
                    let own = self.shapes[source];
                    self.plain_back(&operator, source, target, [which, scale], first);
                    first += own[0];
                }
            }
        }
    }

    /// Gives the gradient of a sum to its terms: as the same buffer where nobody writes into one that another still reads.
    pub(super) fn add_back(&mut self, step: usize, sources: &[usize], target: usize) {
        // The steps that write into a term's gradient after this one: those that read the term before, and its maker where that is a `relu`.
        let writers = |this: &Self, term: usize| -> Vec<usize> {
            let readers = this.readers[term].iter().copied().filter(|reader| *reader < step);
            let relu = |maker: &usize| matches!(this.backs[*maker], Back::Conv { post: Post::Relu, .. });
            readers.chain(this.maker[term].filter(relu)).collect()
        };
        let free = |this: &Self, term: usize| this.maker[term].is_some() && !this.written[term];
        let (mut terms, mut shared) = (sources.to_vec(), vec![]);
        terms.sort_by_key(|term| writers(self, *term).len());
        for term in terms {
            // A term's own step reads its gradient last; steps go back from the last to the first.
            let spoils = |writer: &usize, other: usize| self.maker[other].is_none_or(|maker| maker <= *writer);
            let apart = |a: usize, b: usize| a != b && !writers(self, a).iter().any(|writer| spoils(writer, b));
            let alone = shared.iter().all(|other| apart(term, *other) && apart(*other, term));
            if free(self, term) && alone && sources[0] != sources[1] {
                self.written[term] = true;
                self.slopes[term] = self.slopes[target];
                shared.push(term);
                continue;
            }
            let add = usize::from(self.write(term));
            let arguments = [B(self.slopes[target]), B(self.slopes[term])];
            self.push_back("copy", self.len(term), &arguments, &[add]);
        }
    }

    /// The gradient of one of an operator's sources, whose channels are those from `first` on where it is a part.
    pub(super) fn plain_back(
        &mut self,
        operator: &Elementwise,
        source: usize,
        target: usize,
        [which, scale]: [Option<usize>; 2],
        first: usize,
    ) {
        let add = usize::from(self.write(source));
        let (from, to, value) = (B(self.slopes[target]), B(self.slopes[source]), B(self.values[target]));
        let own @ [_, sh, sw] = self.shapes[source];
        let shape @ [c, h, w] = self.shapes[target];
        let len = self.len(source);
        match operator {
            // Its gradient is given by `add_back`.
            Elementwise::Add => {}
            Elementwise::Concat => self.push_back("concat_back", len, &[from, to], &with(own, &[c, first, add])),
            Elementwise::MaxPool(k) => {
                let which = B(which.unwrap_or_default());
                self.push_back("max_pool_back", len, &[from, which, to], &[c, h, w, sh, sw, *k, add]);
            }
            Elementwise::AveragePool([kh, kw]) => {
                self.push_back("average_pool_back", len, &[from, to], &[c, h, w, sh, sw, *kh, *kw, add]);
            }
            Elementwise::Relu => self.push_back("relu_back", len, &[from, value, to], &[add]),
            Elementwise::Sigmoid => self.push_back("sigmoid_back", len, &[from, value, to], &[add]),
            Elementwise::Upsample(k) => self.push_back("upsample_back", len, &[from, to], &with(shape, &[*k, add])),
            Elementwise::Scale(..) => {
                let arguments = [from, K(scale.unwrap_or_default()), value, to];
                self.push_back("affine_back", len, &arguments, &with(shape, &[0, add]));
            }
        }
    }
}
