//! The samples of a batch that are still searched.

use super::positions;
use crate::{Objective, Oracle, select_rows};
use candle_core::{Result, Tensor};

/// Samples whose search goes on, a row each, and the images of those whose search has ended.
pub struct Active<'a> {
    /// Answers for these samples.
    pub oracle: Oracle<'a>,
    /// What is wanted of them.
    pub objective: Objective,
    /// Their clean images `[n,C,H,W]`.
    pub x: Tensor,
    /// Their present images `[n,C,H,W]`.
    pub x_adv: Tensor,
    places: Vec<usize>,
    /// Places in the whole batch, and the images of their rows.
    ended: Vec<(Vec<usize>, Tensor)>,
    /// On a device: which rows have reached the goal since it was last looked, `[n]` of 1 and 0, and how many steps ago that is.
    reached: Option<Tensor>,
    steps: u32,
}

/// Steps on a device after which the host looks which samples have reached the goal: looking waits for the device.
const UNSEEN: u32 = 4;

impl<'a> Active<'a> {
    /// All samples of a batch, from their starting points `x_adv` `[N,C,H,W]`.
    pub fn new(oracle: &Oracle<'a>, objective: &Objective, x: &Tensor, x_adv: Tensor) -> Self {
        let n = oracle.samples();
        Self {
            oracle: oracle.clone(),
            objective: objective.clone(),
            x: x.clone(),
            x_adv,
            places: (0..n).collect(),
            ended: vec![],
            reached: None,
            steps: 0,
        }
    }

    /// Where in the whole batch each of them stands.
    pub fn places(&self) -> &[usize] {
        &self.places
    }

    /// Whether every search has ended.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Questions from here on are another draw of the randomness: a random defence answers afresh.
    pub fn next_draw(&mut self) {
        self.oracle = self.oracle.draw(self.oracle.pass().draw + 1);
    }

    /// Ends the search of the samples that are `done` at their present images. Returns the rows that go on, by which an attack
    /// selects what it keeps of its own.
    ///
    /// # Errors
    /// Where there is not one flag a row.
    pub fn end(&mut self, done: &[bool]) -> Result<Vec<usize>> {
        if done.len() != self.places.len() {
            candle_core::bail!("{} flags for {} active samples", done.len(), self.places.len())
        }
        let open = positions(done, false);
        if open.len() == done.len() {
            return Ok(open);
        }
        let rows = positions(done, true);
        let places = rows.iter().map(|row| self.places[*row]).collect();
        let images = if open.is_empty() {
            self.x_adv.clone()
        } else {
            select_rows(&self.x_adv, &rows)?
        };
        self.ended.push((places, images));
        self.oracle = self.oracle.select(&open);
        self.objective = self.objective.select(&open);
        self.x = select_rows(&self.x, &open)?;
        self.x_adv = select_rows(&self.x_adv, &open)?;
        self.places = open.iter().map(|row| self.places[*row]).collect();
        Ok(open)
    }

    /// The same for the samples that are adversarial, where the threat model allows it ([`Oracle::early_stop`]); elsewhere all go on.
    ///
    /// # Errors
    /// Where there is not one flag a row.
    pub fn end_found(&mut self, adversarial: &[bool]) -> Result<Vec<usize>> {
        let stops = self.oracle.early_stop();
        let done: Vec<bool> = adversarial.iter().map(|found| *found && stops).collect();
        self.end(&done)
    }

    /// The same by logits `[n,K]` at the present images. On a device it looks only at every fourth call: a sample that reaches the goal in
    /// between stays among the rows, and [`go`](Self::go) leaves its image as it is.
    ///
    /// # Errors
    /// Where the logits are not one row of `f32` a sample.
    pub fn end_reached(&mut self, logits: &Tensor) -> Result<Vec<usize>> {
        if !self.oracle.early_stop() {
            return Ok((0..self.places.len()).collect());
        }
        match logits.device().is_cpu() {
            true => self.end(&self.objective.is_adversarial(logits)?),
            false => self.end_unseen(logits),
        }
    }

    fn end_unseen(&mut self, logits: &Tensor) -> Result<Vec<usize>> {
        let reached = self.objective.reached(logits)?;
        let reached = match self.reached.take() {
            Some(before) => before.maximum(&reached)?,
            None => reached,
        };
        self.steps += 1;
        if self.steps < UNSEEN {
            self.reached = Some(reached);
            return Ok((0..self.places.len()).collect());
        }
        self.steps = 0;
        let done: Vec<bool> = reached.to_vec1::<u8>()?.into_iter().map(|done| done != 0).collect();
        self.end(&done)
    }

    /// Goes on to the images `moved` `[n,C,H,W]`.
    ///
    /// # Errors
    /// Where their shape is another.
    pub fn go(&mut self, moved: Tensor) -> Result<()> {
        self.x_adv = match &self.reached {
            None => moved,
            Some(reached) => {
                let mut shape = vec![1; moved.rank()];
                shape[0] = reached.dim(0)?;
                let stays = reached.reshape(shape)?.broadcast_as(moved.shape())?;
                stays.where_cond(&self.x_adv, &moved)?
            }
        };
        Ok(())
    }

    /// The images of all samples `[N,C,H,W]`, in their order: those at which searches ended, and the present ones.
    ///
    /// # Errors
    /// Where there are no samples.
    pub fn images(mut self) -> Result<Tensor> {
        self.end(&vec![true; self.places.len()])?;
        let (places, images): (Vec<_>, Vec<_>) = self.ended.into_iter().unzip();
        let places = places.concat();
        // Where in what has ended each place of the batch is.
        let mut order = vec![0; places.len()];
        places.iter().enumerate().for_each(|(at, place)| order[*place] = at);
        let images = Tensor::cat(&images, 0)?;
        match order.is_sorted() {
            true => Ok(images),
            false => select_rows(&images, &order),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::attack::Active;
    use crate::testing::Testbed;
    use crate::{Goal, Result};
    use candle_core::{Device, Tensor};

    /// Steps of .1 away from label 0, whose logit falls with x: samples reach the goal at their own time, looked at or not.
    #[test]
    fn looking_rarely_leaves_the_same_images() {
        let target = Testbed::linear([1, 1, 1], &[vec![-1.], vec![1.]], &[1., 0.]).unwrap();
        let start: Vec<f32> = (0..9).map(|i| 0.02 + 0.06 * i as f32).collect();
        let x = Tensor::new(start, &Device::Cpu)
            .unwrap()
            .reshape(((), 1, 1, 1))
            .unwrap();
        let y = Tensor::new(&[0u32; 9], &Device::Cpu).unwrap();
        let run = |rarely: bool| {
            let search = |oracle: &crate::Oracle| -> Result<Vec<f32>> {
                let objective = Goal::Untargeted.objective(oracle, &x, &y)?;
                let mut active = Active::new(oracle, &objective, &x, x.clone());
                for _ in 0..7 {
                    let logits = active.oracle.logits(&active.x_adv)?;
                    match rarely {
                        true => active.end_unseen(&logits)?,
                        false => active.end_reached(&logits)?,
                    };
                    if active.is_empty() {
                        break;
                    }
                    active.go((&active.x_adv + 0.1)?)?;
                }
                active.images()?.flatten_all()?.to_vec1()
            };
            target.with_oracle(&[0, 1, 2, 3, 4, 5, 6, 7, 8], search).unwrap()
        };
        assert_eq!(run(true), run(false));
        assert!(run(true).iter().all(|x| (0.5..=0.6).contains(x)), "{:?}", run(true));
    }

    #[test]
    fn what_has_ended_keeps_its_image_and_its_place() {
        let target = Testbed::linear([1, 1, 1], &[vec![1.], vec![-1.]], &[0., 0.]).unwrap();
        let image = |v: &[f32]| Tensor::new(v, &Device::Cpu).unwrap().reshape(((), 1, 1, 1)).unwrap();
        let x = image(&[0.1, 0.2, 0.3, 0.4]);
        let y = Tensor::new(&[0u32, 1, 0, 1], &Device::Cpu).unwrap();
        let run = |oracle: &crate::Oracle| -> Result<Vec<f32>> {
            let objective = Goal::Untargeted.objective(oracle, &x, &y)?;
            let mut active = Active::new(oracle, &objective, &x, x.clone());
            assert_eq!(active.end(&[false; 4])?, [0, 1, 2, 3]);
            assert_eq!(active.end(&[false, true, false, true])?, [0, 2]);
            assert_eq!((active.places(), active.objective.labels()), (&[0, 2][..], &[0, 0][..]));
            assert_eq!(active.oracle.pass().sample_ids[..], [10, 30]);
            active.x_adv = (&active.x_adv + 0.5)?;
            assert_eq!(active.end(&[true, false])?, [1]);
            active.x_adv = (&active.x_adv + 0.1)?;
            assert!(active.end(&[true, true]).is_err(), "one flag a row");
            assert_eq!(
                active.end_found(&[true])?,
                if oracle.early_stop() { vec![] } else { vec![0] }
            );
            assert_eq!(active.is_empty(), oracle.early_stop());
            active.images()?.flatten_all()?.to_vec1()
        };
        for target in [target.clone(), target.with_early_stop(false)] {
            let images = target.with_oracle(&[10, 20, 30, 40], run).unwrap();
            assert_eq!(images, [0.6, 0.2, 0.3 + 0.5 + 0.1, 0.4]);
        }
    }
}
