//! What the host waits for: the calls of plugins that have not returned. They stand on a [`Board`], which another process may share: it still
//! says where a process was that has died.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Threads that are inside plugins at once. Others are not shown.
const SLOTS: usize = 256;
/// Bytes that name a thread's calls; longer names are cut.
const NAMES: usize = 484;
/// Bytes of a last word.
const WORD: usize = 1008;
/// Between a callee and its function, and behind the function. Names of plugins hold neither: they are printable.
const BETWEEN: u8 = b'\t';
const END: u8 = b'\n';

/// Calls in progress, thread by thread, and how the process died. Made of atomics alone: all bytes zero is an empty board, and one that another
/// process is writing may be read.
#[repr(C)]
pub struct Board {
    signal: AtomicU32,
    /// One more than the slot of the thread that the signal came to.
    fallen: AtomicU32,
    overflow: AtomicU32,
    word: Text<WORD>,
    order: AtomicU64,
    slots: [Slot; SLOTS],
}

#[repr(C)]
struct Slot {
    taken: AtomicU32,
    names: Text<NAMES>,
    /// When a call of the thread last began or returned, in nanoseconds of the monotonic clock.
    since: AtomicU64,
    /// Its place among all slots that were ever taken.
    number: AtomicU64,
}

#[repr(C)]
struct Text<const N: usize> {
    length: AtomicU32,
    bytes: [AtomicU8; N],
}

impl<const N: usize> Text<N> {
    const fn new() -> Self {
        Self {
            length: AtomicU32::new(0),
            bytes: [const { AtomicU8::new(0) }; N],
        }
    }

    /// Takes what of `text` has room at the end.
    fn push(&self, text: &[u8]) {
        let length = self.length.load(Ordering::Relaxed) as usize;
        let room = self.bytes.get(length..).unwrap_or_default();
        let taken = room
            .iter()
            .zip(text)
            .map(|(to, from)| to.store(*from, Ordering::Relaxed));
        self.length.store((length + taken.count()) as u32, Ordering::Release);
    }

    fn read(&self) -> String {
        let length = (self.length.load(Ordering::Acquire) as usize).min(N);
        let bytes: Vec<u8> = (self.bytes[..length].iter())
            .map(|byte| byte.load(Ordering::Relaxed))
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn clear(&self) {
        self.length.store(0, Ordering::Release);
    }
}

/// How a process was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallen {
    /// The signal.
    pub signal: i32,
    /// Whether the thread had no stack left.
    pub overflow: bool,
    /// The innermost call of the thread, such as `classifier 'model_x', forward`.
    pub place: Option<String>,
}

static OWN: Board = Board::new();
/// The board in use; null: the process's own.
static SHARED: AtomicPtr<Board> = AtomicPtr::new(std::ptr::null_mut());

/// The board of this process, or the one that it shares.
fn board() -> &'static Board {
    // SAFETY: only `share` writes it, from a reference that lives as long as the process.
    unsafe { SHARED.load(Ordering::Acquire).as_ref() }.unwrap_or(&OWN)
}

/// From here on this process notes its calls there, and reads them from there.
pub fn share(board: &'static Board) {
    SHARED.store(std::ptr::from_ref(board).cast_mut(), Ordering::Release);
}

/// The calls in progress, each once, those that began first in front: `attack 'pgd' (perturb), classifier 'model_x' (forward)`.
pub fn in_progress() -> Option<String> {
    board().in_progress()
}

/// Notes a signal that ends the process, and where the thread was that it came to. Takes no lock and no memory: for a signal handler.
pub fn fall(signal: i32, overflow: bool) {
    let board = board();
    board.overflow.store(overflow.into(), Ordering::Relaxed);
    board.fallen.store(PLACE.get().slot, Ordering::Relaxed);
    board.signal.store(signal as u32, Ordering::Release);
}

/// Notes why the process ends, for whoever shares the board.
pub fn last_word(text: &str) {
    let word = &board().word;
    word.clear();
    word.push(text.as_bytes());
}

impl Board {
    const fn new() -> Self {
        Self {
            signal: AtomicU32::new(0),
            fallen: AtomicU32::new(0),
            overflow: AtomicU32::new(0),
            word: Text::new(),
            order: AtomicU64::new(0),
            slots: [const {
                Slot {
                    taken: AtomicU32::new(0),
                    names: Text::new(),
                    since: AtomicU64::new(0),
                    number: AtomicU64::new(0),
                }
            }; SLOTS],
        }
    }

    /// Makes it empty, where no process writes it.
    pub fn clear(&self) {
        for flag in [&self.signal, &self.fallen, &self.overflow] {
            flag.store(0, Ordering::Relaxed);
        }
        self.word.clear();
        for slot in &self.slots {
            slot.names.clear();
            slot.taken.store(0, Ordering::Release);
        }
    }

    /// The calls in progress, as [`in_progress`] says them.
    pub fn in_progress(&self) -> Option<String> {
        let mut taken: Vec<&Slot> = self.taken().collect();
        taken.sort_by_key(|slot| slot.number.load(Ordering::Relaxed));
        let mut names: Vec<String> = vec![];
        for slot in taken {
            for call in slot.calls() {
                let name = match call.split_once(BETWEEN as char) {
                    Some((callee, function)) => format!("{callee} ({function})"),
                    None => call,
                };
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// The innermost call of the thread in which none has begun or returned for the longest time, and that time.
    pub fn quiet(&self) -> Option<(Duration, String)> {
        let now = now();
        let quiet = self.taken().filter_map(|slot| {
            let since = slot.since.load(Ordering::Relaxed);
            Some((Duration::from_nanos(now.saturating_sub(since)), slot.innermost()?))
        });
        quiet.max_by_key(|(time, _)| *time)
    }

    /// How the process was killed, where a signal came to one of its threads.
    pub fn fallen(&self) -> Option<Fallen> {
        let signal = self.signal.load(Ordering::Acquire) as i32;
        let at = (self.fallen.load(Ordering::Relaxed) as usize).checked_sub(1);
        (signal != 0).then(|| Fallen {
            signal,
            overflow: self.overflow.load(Ordering::Relaxed) != 0,
            place: at.and_then(|at| self.slots.get(at)).and_then(Slot::innermost),
        })
    }

    /// Why the process said that it ends.
    pub fn word(&self) -> Option<String> {
        Some(self.word.read()).filter(|word| !word.is_empty())
    }

    fn taken(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.taken.load(Ordering::Acquire) != 0)
    }

    /// A slot for a thread, as one more than its place; 0 where none is free.
    fn claim(&self) -> u32 {
        let claim = |slot: &Slot| {
            let taken = slot.taken.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok()
        };
        let Some(at) = self.slots.iter().position(claim) else {
            return 0;
        };
        let number = self.order.fetch_add(1, Ordering::Relaxed);
        self.slots[at].number.store(number, Ordering::Relaxed);
        at as u32 + 1
    }
}

impl Slot {
    fn calls(&self) -> Vec<String> {
        let names = self.names.read();
        names
            .split(END as char)
            .filter(|name| !name.is_empty())
            .map(String::from)
            .collect()
    }

    fn innermost(&self) -> Option<String> {
        let call = self.calls().pop()?;
        Some(call.replace(BETWEEN as char, ", "))
    }

    fn touch(&self) {
        self.since.store(now(), Ordering::Relaxed);
    }
}

/// Nanoseconds of the clock that all processes of a machine share.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Where a thread notes its calls.
#[derive(Clone, Copy)]
struct Place {
    /// One more than the place of its slot; 0: none.
    slot: u32,
    /// Calls that are inside one another.
    depth: u32,
}

thread_local! {
    static PLACE: Cell<Place> = const { Cell::new(Place { slot: 0, depth: 0 }) };
}

/// A call in progress, until it is dropped, by the thread that made it.
pub struct Waiting {
    /// Bytes of the names before it.
    before: u32,
    of_thread: PhantomData<*const ()>,
}

impl Waiting {
    /// For a function of `callee`, such as `forward` of `classifier 'model_x'`.
    pub fn for_call(callee: &str, function: &str) -> Self {
        let (board, mut place) = (board(), PLACE.get());
        if place.depth == 0 {
            place.slot = board.claim();
        }
        place.depth += 1;
        PLACE.set(place);
        let mut before = 0;
        if let Some(slot) = place.of(board) {
            before = slot.names.length.load(Ordering::Relaxed);
            slot.touch();
            for part in [callee.as_bytes(), &[BETWEEN], function.as_bytes(), &[END]] {
                slot.names.push(part);
            }
        }
        Self {
            before,
            of_thread: PhantomData,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut place = PLACE.get();
        place.depth -= 1;
        if let Some(slot) = place.of(board()) {
            slot.touch();
            slot.names.length.store(self.before, Ordering::Release);
            if place.depth == 0 {
                slot.taken.store(0, Ordering::Release);
                place.slot = 0;
            }
        }
        PLACE.set(place);
    }
}

impl Place {
    fn of(self, board: &Board) -> Option<&Slot> {
        board.slots.get((self.slot as usize).checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_named_once_in_the_order_of_their_beginning() {
        let (outer, inner) = (
            Waiting::for_call("attack 'w'", "perturb"),
            Waiting::for_call("classifier 'w'", "forward"),
        );
        let (held, free) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _other_worker = Waiting::for_call("attack 'w'", "perturb");
                held.wait();
                free.wait();
            });
            held.wait();
            // Other tests of this process may be in calls of their own.
            let said = in_progress().unwrap();
            assert!(
                said.contains("attack 'w' (perturb)") && said.matches("attack 'w'").count() == 1,
                "{said}"
            );
            assert!(said.find("attack 'w'") < said.find("classifier 'w'"), "{said}");
            free.wait();
        });
        drop(inner);
        assert!(!in_progress().unwrap().contains("classifier 'w'"));
        drop(outer);
        assert!(in_progress().is_none_or(|said| !said.contains("'w'")));
    }

    #[test]
    fn the_place_of_a_signal_is_the_innermost_call_of_its_thread() {
        let board = Board::new();
        assert_eq!((board.fallen(), board.word(), board.quiet()), (None, None, None));
        let slot = board.claim();
        for name in ["attack 'a'\tperturb\n", "classifier 'c'\tforward\n"] {
            board.slots[slot as usize - 1].names.push(name.as_bytes());
        }
        board.signal.store(11, Ordering::Relaxed);
        board.fallen.store(slot, Ordering::Relaxed);
        let fallen = board.fallen().unwrap();
        assert_eq!((fallen.signal, fallen.overflow), (11, false));
        assert_eq!(fallen.place.as_deref(), Some("classifier 'c', forward"));
        assert_eq!(board.quiet().unwrap().1, "classifier 'c', forward");
        board.clear();
        assert_eq!((board.fallen(), board.in_progress()), (None, None));
    }

    #[test]
    fn names_that_are_too_long_are_cut_and_more_threads_than_slots_are_not_shown() {
        let board = Board::new();
        let text = &board.slots[0].names;
        text.push(&[b'x'; NAMES - 1]);
        text.push("é".as_bytes());
        text.push(b"more");
        assert_eq!(text.read().chars().count(), NAMES);
        let claimed: Vec<u32> = (0..=SLOTS).map(|_| board.claim()).collect();
        assert_eq!((claimed[0], claimed[SLOTS - 1], claimed[SLOTS]), (1, SLOTS as u32, 0));
    }
}
