//! Each stack is isolated: its panics, its frames and its registers.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::{Result, anyhow};
use greenlet::{Greenlet, Unwinding, getcurrent};

use crate::support::{Drops, Log, on_drop, up};

/// Returns the text of a caught panic.
fn text(caught: std::thread::Result<Result<()>>) -> &'static str {
    caught.unwrap_err().downcast_ref::<&str>().copied().unwrap_or("?")
}

// CX-1: several greenlets switch away inside `catch_unwind`, at different depths, and panic later,
// in any order: each catches its own panic.
#[test]
fn each_greenlet_catches_its_own_panic() {
    fn deep(depth: u32, panics: &'static str) -> Result<()> {
        if depth > 0 {
            return deep(depth - 1, panics).map(|()| assert!(depth > 0));
        }
        up::<()>(())?;
        resume_unwind(Box::new(panics))
    }
    let names = ["a", "b", "c", "d"];
    let greenlets = names.map(|name| {
        let greenlet = Greenlet::new(move |depth: u32| {
            let caught = text(catch_unwind(|| deep(depth, name)));
            let again = text(catch_unwind(|| deep(2, name)));
            assert!(!std::thread::panicking());
            Ok((caught, again))
        });
        greenlet
            .switch::<()>(3 * u32::from(name.as_bytes()[0] - b'a'))
            .unwrap();
        greenlet
    });
    for index in [2, 0, 3, 1] {
        greenlets[index].switch::<()>(()).unwrap();
    }
    for index in [1, 3, 0, 2] {
        let caught: (&str, &str) = greenlets[index].switch(()).unwrap();
        assert_eq!(caught, (names[index], names[index]));
    }
}

// CX-2: a panic does not propagate through a switch to the greenlet that switched there. It goes to
// the parent.
#[test]
fn a_panic_does_not_travel_through_a_switch() {
    let log = Log::new();
    let panics = Greenlet::new(|(): ()| -> Result<()> { resume_unwind(Box::new("of its own")) });
    let inside = log.clone();
    let switches = Greenlet::new(move |(): ()| {
        let outcome = catch_unwind(AssertUnwindSafe(|| panics.switch::<&str>(())));
        inside.add(format!("the switching greenlet gets {:?}", outcome.unwrap()?));
        Ok(())
    });
    let caught = catch_unwind(AssertUnwindSafe(|| switches.switch::<()>(())));
    assert_eq!(text(caught), "of its own");
    assert!(switches.is_active());
    switches.switch::<()>("only this").unwrap();
    assert_eq!(log.take(), ["the switching greenlet gets \"only this\""]);
}

// CX-5, LK-5: an error that leaves a greenlet is the outcome of the switch. A thousand of them leak
// nothing.
#[test]
fn a_thousand_errors_leak_nothing() {
    let drops = Drops::new();
    for number in 0..1000 {
        let witness = drops.witness();
        let fails = Greenlet::new(move |(): ()| -> Result<()> {
            let _witness = witness;
            Err(anyhow!("number {number}"))
        });
        assert_eq!(
            fails.switch::<()>(()).unwrap_err().to_string(),
            format!("number {number}")
        );
    }
    assert_eq!(drops.count(), 1000);
    assert_eq!(
        (greenlet::greenlets(), greenlet::stacks_in_use()),
        (vec![getcurrent()], 0)
    );
}

// CX-7, HZ-37: Rust counts panics for each thread, not for each greenlet. So a switch from a
// destructor that runs during a panic is refused, and no other greenlet sees `panicking`.
#[test]
fn no_other_greenlet_sees_a_panic() {
    let log = Log::new();
    let innocent = Greenlet::new(|(): ()| {
        let lock = std::sync::Mutex::new(0);
        loop {
            assert!(!std::thread::panicking());
            *lock.lock().unwrap() += 1; // would be poisoned
            up::<()>(!lock.is_poisoned())?;
        }
        #[expect(unreachable_code, reason = "names the type of the outcome")]
        Ok(())
    });
    assert!(innocent.switch::<bool>(()).unwrap());
    let (inside, target) = (log.clone(), innocent.clone());
    let panics = Greenlet::new(move |(): ()| -> Result<()> {
        let _switches = on_drop(move || {
            let refused = target.switch::<bool>(()).unwrap_err();
            inside.add(format!("refused: {}", refused.is::<Unwinding>()));
        });
        up::<()>(())?;
        resume_unwind(Box::new("panic"))
    });
    panics.switch::<()>(()).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| panics.switch::<()>(())));
    assert_eq!(text(caught), "panic");
    assert!(!std::thread::panicking());
    assert!(innocent.switch::<bool>(()).unwrap());
    assert_eq!(log.take(), ["refused: true"]);
}

/// Calls itself, with values to check in each frame, and switches at the bottom.
#[inline(never)]
fn with_frames(depth: usize, seed: u64) -> Result<u64> {
    let frame: [u64; 16] = std::array::from_fn(|index| seed.wrapping_mul(31).wrapping_add(index as u64));
    let frame = std::hint::black_box(frame);
    let below = if depth == 0 {
        up::<u64>(seed)?
    } else {
        with_frames(depth - 1, seed + 1)?
    };
    let expected = |index| seed.wrapping_mul(31).wrapping_add(index as u64);
    assert!(
        frame
            .iter()
            .enumerate()
            .all(|(index, &word)| word == expected(index))
    );
    Ok(below.wrapping_add(frame[depth % 16]))
}

// CX-8: the frames between the function of a greenlet and its switch stay unchanged while other
// greenlets run.
#[test]
fn frames_are_unchanged_across_switches() {
    let greenlets: Vec<Greenlet> = (0..20_usize)
        .map(|number| {
            let greenlet = Greenlet::new(|(depth, seed): (usize, u64)| with_frames(depth, seed));
            let bottom: u64 = greenlet.switch((number * 5, 1000 * number as u64)).unwrap();
            assert_eq!(bottom, 1000 * number as u64 + number as u64 * 5);
            greenlet
        })
        .collect();
    for (number, greenlet) in greenlets.iter().enumerate().rev() {
        let (depth, seed) = (number * 5, 1000 * number as u64);
        let frame = |level: usize| {
            let seed = seed + level as u64;
            seed.wrapping_mul(31) + ((depth - level) % 16) as u64
        };
        let expected: u64 = 7 + (0..=depth).map(frame).sum::<u64>();
        assert_eq!(greenlet.switch::<u64>(7_u64).unwrap(), expected);
    }
}

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn raise(number: i32) -> i32;
}

static HANDLED_AT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

extern "C" fn handle(_number: i32) {
    let local = 0_u8;
    HANDLED_AT.store(
        std::hint::black_box(&raw const local) as usize,
        std::sync::atomic::Ordering::Relaxed,
    );
}

// CX-9: a signal that arrives in a greenlet is handled on the stack of the greenlet. The greenlet
// continues, and can switch, once the handler has returned. (A switch out of a handler is not
// supported.)
#[test]
fn a_signal_is_handled_on_the_greenlets_stack() {
    const SIGUSR2: i32 = 12;
    let handled = Greenlet::new(|(): ()| {
        let local = 0_u8;
        let here = std::hint::black_box(&raw const local) as usize;
        // SAFETY: the handler has the right type, and makes only an atomic store.
        unsafe { signal(SIGUSR2, handle as extern "C" fn(i32) as usize) };
        // SAFETY: the signal has the handler.
        unsafe { raise(SIGUSR2) };
        let at = HANDLED_AT.load(std::sync::atomic::Ordering::Relaxed);
        let is_here = at.abs_diff(here) < 64 << 10;
        up::<()>(is_here)?;
        Ok("goes on")
    });
    assert!(handled.switch::<bool>(()).unwrap());
    assert_eq!(handled.switch::<&str>(()).unwrap(), "goes on");
}

/// Keeps more integers and floats alive over a switch than there are registers.
#[inline(never)]
fn with_registers(seed: u64) -> Result<(u64, f64)> {
    let integers: [u64; 24] = std::array::from_fn(|index| std::hint::black_box(seed + index as u64));
    let [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        i,
        j,
        k,
        l,
        m,
        n,
        o,
        p,
        q,
        r,
        s,
        t,
        u,
        v,
        w,
        x,
    ] = integers;
    let floats: [f64; 20] = std::array::from_fn(|index| std::hint::black_box(seed as f64 + index as f64));
    let [
        fa,
        fb,
        fc,
        fd,
        fe,
        ff,
        fg,
        fh,
        fi,
        fj,
        fk,
        fl,
        fm,
        fn_,
        fo,
        fp,
        fq,
        fr,
        fs,
        ft,
    ] = floats;
    up::<()>(())?;
    let integers =
        a ^ b << 1 ^ c << 2 ^ d << 3 ^ e << 4 ^ f << 5 ^ g << 6 ^ h << 7 ^ i << 8 ^ j << 9 ^ k << 10;
    let integers = integers ^ l << 11 ^ m << 12 ^ n << 13 ^ o << 14 ^ p << 15 ^ q << 16 ^ r << 17 ^ s << 18;
    let integers = integers ^ t << 19 ^ u << 20 ^ v << 21 ^ w << 22 ^ x << 23;
    let floats =
        fa + fb * 2. + fc * 3. + fd * 4. + fe * 5. + ff * 6. + fg * 7. + fh * 8. + fi * 9. + fj * 10.;
    let floats = floats + fk * 11. + fl * 12. + fm * 13. + fn_ * 14. + fo * 15. + fp * 16. + fq * 17.;
    Ok((integers, floats + fr * 18. + fs * 19. + ft * 20.))
}

// CX-10, HZ-16, HZ-40: values in registers survive a switch, in every greenlet, at the first switch
// too, and in optimised builds.
#[test]
fn each_greenlet_has_its_own_registers() {
    let greenlets = [1_000, 2_000_000, 3].map(|seed| {
        let greenlet = Greenlet::new(move |(): ()| with_registers(seed));
        greenlet.switch::<()>(()).unwrap();
        (seed, greenlet)
    });
    for (seed, greenlet) in greenlets {
        let expected_integers = (0..24).fold(0, |all, index| all ^ (seed + index) << index);
        let expected_floats: f64 = (0..20)
            .map(|index| (seed as f64 + f64::from(index)) * f64::from(index + 1))
            .sum();
        let (integers, floats): (u64, f64) = greenlet.switch(()).unwrap();
        assert_eq!(integers, expected_integers);
        assert!(
            (floats - expected_floats).abs() < 1e-6,
            "{floats} {expected_floats}"
        );
    }
}
