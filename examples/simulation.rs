//! A discrete-event simulation in virtual time: the bank of the SimPy tutorial, whose customers
//! lose patience.
//!
//! Each customer is a task: one function tells its life from arrival to departure. The counter is a
//! semaphore of the toolkit, and patience is the timeout of its `acquire`. The random numbers are those of
//! Python, so the run prints what SimPy prints for the same seed. A test compares the two.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use greenlet::testing::recorder;
use greenlet_toolkit::{Kit, Semaphore, VirtualTime};

const INTERVAL: f64 = 10.0;
const TIME_IN_BANK: f64 = 12.0;
const PATIENCE: (f64, f64) = (1.0, 3.0);

struct Bank {
    kit: Kit,
    counter: Semaphore,
    random: RefCell<Mersenne>,
}

impl Bank {
    fn now(&self) -> f64 {
        self.kit.now().as_secs_f64()
    }

    fn log(&self, name: &str, what: &str) {
        recorder::note(format!("{:7.4} {name}: {what}", self.now()));
    }

    fn source(self: Rc<Bank>, customers: usize) -> Result<()> {
        for n in 0..customers {
            let bank = self.clone();
            let name = format!("Customer{n:02}");
            self.kit.spawn(&name.clone(), move || bank.customer(&name));
            let delay = self.random.borrow_mut().exponential(INTERVAL);
            self.kit.sleep(Duration::from_secs_f64(delay))?;
        }
        Ok(())
    }

    fn customer(&self, name: &str) -> Result<()> {
        let arrival = self.now();
        self.log(name, "Here I am");
        let patience = self.random.borrow_mut().uniform(PATIENCE.0, PATIENCE.1);
        let is_served = self.counter.acquire(Some(Duration::from_secs_f64(patience)))?;
        let wait = self.now() - arrival;
        if !is_served {
            self.log(name, &format!("RENEGED after {wait:6.3}"));
            return Ok(());
        }
        self.log(name, &format!("Waited {wait:6.3}"));
        let time = self.random.borrow_mut().exponential(TIME_IN_BANK);
        self.kit.sleep(Duration::from_secs_f64(time))?;
        self.log(name, "Finished");
        self.counter.release()
    }
}

fn run(customers: usize) -> Result<()> {
    let scheduler = VirtualTime::default();
    let kit = Kit::new(&scheduler);
    let bank = Rc::new(Bank {
        counter: Semaphore::new(&kit, 1),
        kit: kit.clone(),
        random: RefCell::default(),
    });
    kit.spawn("source", move || bank.source(customers));
    kit.run(|| scheduler.run())
}

fn lines(recording: &recorder::Recording) -> Vec<&str> {
    recording
        .events()
        .iter()
        .filter_map(recorder::Event::text)
        .collect()
}

fn main() -> Result<()> {
    let (outcome, recording) = recorder::record(|| run(5));
    outcome?;
    println!("Bank renege");
    for line in lines(&recording) {
        println!("{line}");
    }
    Ok(())
}

/// Python's `random.Random(42)`: the Mersenne twister MT19937.
struct Mersenne {
    state: [u32; Mersenne::SIZE],
    next: usize,
}

impl Default for Mersenne {
    fn default() -> Mersenne {
        Mersenne::seeded(42)
    }
}

impl Mersenne {
    const SIZE: usize = 624;

    fn seeded(seed: u32) -> Mersenne {
        let mut state = [0_u32; Mersenne::SIZE];
        state[0] = 19_650_218;
        let mix = |last: u32, factor: u32| (last ^ (last >> 30)).wrapping_mul(factor);
        for n in 1..Mersenne::SIZE {
            state[n] = mix(state[n - 1], 1_812_433_253).wrapping_add(n as u32);
        }
        // Like CPython, with the seed as a key of one word.
        let mut place = 1;
        let advance = |state: &mut [u32; Mersenne::SIZE], place: usize| {
            if place + 1 < Mersenne::SIZE {
                return place + 1;
            }
            state[0] = state[Mersenne::SIZE - 1];
            1
        };
        for _ in 0..Mersenne::SIZE {
            state[place] = (state[place] ^ mix(state[place - 1], 1_664_525)).wrapping_add(seed);
            place = advance(&mut state, place);
        }
        for _ in 1..Mersenne::SIZE {
            let mixed = state[place] ^ mix(state[place - 1], 1_566_083_941);
            state[place] = mixed.wrapping_sub(place as u32);
            place = advance(&mut state, place);
        }
        state[0] = 0x8000_0000;
        let next = Mersenne::SIZE;
        Mersenne { state, next }
    }

    fn word(&mut self) -> u32 {
        const SIZE: usize = Mersenne::SIZE;
        if self.next == SIZE {
            for n in 0..SIZE {
                let y = (self.state[n] & 0x8000_0000) | (self.state[(n + 1) % SIZE] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[n] = self.state[(n + 397) % SIZE] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn random(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.random()).ln() / (1.0 / mean)
    }

    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.random()
    }
}

#[cfg(test)]
mod tests {
    use greenlet::record;

    use super::*;

    #[test]
    fn the_random_numbers_are_pythons() {
        let mut random = Mersenne::seeded(42);
        assert_eq!(random.random(), 0.639_426_798_457_883_7);
        assert_eq!(random.random(), 0.025_010_755_222_666_936);
        assert_eq!(random.random(), 0.275_029_318_369_119_26);
    }

    /// The output of SimPy 4 with seed 42.
    #[test]
    fn the_bank_is_simpys() {
        let (outcome, recording) = record(|| run(5));
        outcome.unwrap();
        assert_eq!(
            lines(&recording),
            [
                " 0.0000 Customer00: Here I am",
                " 0.0000 Customer00: Waited  0.000",
                " 3.8595 Customer00: Finished",
                "10.2006 Customer01: Here I am",
                "10.2006 Customer01: Waited  0.000",
                "12.7265 Customer02: Here I am",
                "13.9003 Customer02: RENEGED after  1.174",
                "23.7507 Customer01: Finished",
                "34.9993 Customer03: Here I am",
                "34.9993 Customer03: Waited  0.000",
                "37.9599 Customer03: Finished",
                "40.4798 Customer04: Here I am",
                "40.4798 Customer04: Waited  0.000",
                "43.1401 Customer04: Finished",
            ]
        );
    }

    /// The number of customers of a thousand that leave in SimPy, and its last event.
    #[test]
    fn the_bank_is_simpys_for_long() {
        let (outcome, recording) = record(|| run(1000));
        outcome.unwrap();
        let lines = lines(&recording);
        assert_eq!(lines.iter().filter(|line| line.contains("RENEGED")).count(), 468);
        assert_eq!(lines.last(), Some(&"10626.4100 Customer998: Finished"));
    }
}
