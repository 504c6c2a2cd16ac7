//! Stacks of the pool: their places and sizes, their guards, their reuse, and their memory.

use crate::stack::{
    DEFAULT_SIZE, MAX_SIZE, MIN_SIZE, Stack, StackCache, discard, guard_at, high_water, page_size,
};

fn take(cache: &mut StackCache, size: usize) -> Stack {
    match cache.take(size) {
        Some(stack) => stack,
        None => cache.fetch(size).unwrap(),
    }
}

/// Returns `true` if the kernel refuses to write to a page. A direct access would kill the process.
fn is_guard(address: *mut u8) -> bool {
    // SAFETY: the page belongs to a stack that no code runs on, or to its guard.
    unsafe { libc::uname(address.cast()) != 0 }
}

#[test]
fn every_stack_has_a_guard_right_below_it() {
    let mut cache = StackCache::new();
    for size in [MIN_SIZE, 64 << 10, DEFAULT_SIZE] {
        let stacks: Vec<Stack> = (0..300).map(|_| take(&mut cache, size)).collect();
        for stack in &stacks {
            let limit = stack.limit();
            let guard = limit.wrapping_sub(page_size());
            assert!(is_guard(guard) && !is_guard(limit));
            for inside in [guard, limit.wrapping_sub(1)] {
                let hit = guard_at(inside.addr()).unwrap();
                assert_eq!((hit.base, hit.size), (stack.base().as_ptr(), size));
            }
            for outside in [
                limit,
                guard.wrapping_sub(1),
                stack.base().as_ptr().wrapping_sub(1),
            ] {
                let found = guard_at(outside.addr()).map(|hit| hit.base);
                assert_ne!(found, Some(stack.base().as_ptr()));
            }
        }
        for stack in stacks {
            cache.give(stack);
        }
    }
    cache.release();
}

#[test]
fn stacks_are_an_odd_number_of_pages_apart() {
    let mut cache = StackCache::new();
    let mut bases: Vec<usize> = Vec::new();
    let stacks: Vec<Stack> = (0..100).map(|_| take(&mut cache, 128 << 10)).collect();
    bases.extend(stacks.iter().map(|stack| stack.base().addr().get()));
    bases.sort_unstable();
    let apart: Vec<usize> = bases
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) / page_size())
        .collect();
    // Neighbours are one stride apart; between slabs it may be more.
    let stride = *apart.iter().min().unwrap();
    assert_eq!(stride % 2, 1);
    assert!(stride * page_size() > 128 << 10);
    assert!(
        apart.iter().filter(|&&pages| pages == stride).count() > 50,
        "{apart:?}"
    );
    for stack in stacks {
        cache.give(stack);
    }
    cache.release();
}

#[test]
fn the_stack_given_back_last_is_given_out_first() {
    let mut cache = StackCache::new();
    let first = take(&mut cache, 64 << 10);
    let second = take(&mut cache, 64 << 10);
    assert_eq!(cache.in_use(), 2);
    let (first_base, second_base) = (first.base(), second.base());
    assert_ne!(first_base, second_base);
    cache.give(second);
    cache.give(first);
    assert_eq!(cache.in_use(), 0);
    let (first, second) = (take(&mut cache, 64 << 10), take(&mut cache, 64 << 10));
    assert_eq!((first.base(), second.base()), (first_base, second_base));
    cache.give(first);
    cache.give(second);
    cache.release();
}

#[test]
fn sizes_are_rounded_up_to_a_power_of_two() {
    let mut cache = StackCache::new();
    for (asked, given) in [
        (MIN_SIZE, MIN_SIZE),
        (MIN_SIZE + 1, 2 * MIN_SIZE),
        (100_000, 128 << 10),
        (3 << 20, 4 << 20),
    ] {
        let stack = take(&mut cache, asked);
        assert_eq!(stack.size(), given);
        cache.give(stack);
    }
    for asked in [0, 1, MIN_SIZE - 1, MAX_SIZE + 1, usize::MAX] {
        assert!(cache.take(asked).is_none());
        assert!(cache.fetch(asked).unwrap_err().is_bad_size());
    }
    assert_eq!(cache.in_use(), 0);
    cache.release();
}

#[test]
fn the_high_water_mark_counts_touched_pages() {
    let mut cache = StackCache::new();
    // No other test uses this size, so the stack is untouched.
    let stack = take(&mut cache, 8 << 20);
    assert_eq!(high_water(&stack), 0);
    let touch = |depth: usize| {
        let address = stack.base().as_ptr().wrapping_sub(depth);
        // SAFETY: the address is inside the stack, which this test owns.
        unsafe { address.write(1) };
    };
    touch(1);
    assert_eq!(high_water(&stack), page_size());
    touch(100 * page_size());
    touch(10 * page_size());
    assert_eq!(high_water(&stack), 100 * page_size());
    touch(stack.size());
    assert_eq!(high_water(&stack), stack.size());
    cache.give(stack);
    cache.release();
}

#[test]
fn discarding_idle_stacks_keeps_their_guards_and_the_content_of_their_neighbours() {
    let mut cache = StackCache::new();
    // No other test uses this size, so the stacks are neighbours.
    let mut stacks: Vec<Stack> = (0..10).map(|_| take(&mut cache, 2 << 20)).collect();
    stacks.sort_unstable_by_key(Stack::base);
    let last_byte = |stack: &Stack| stack.base().as_ptr().wrapping_sub(1);
    for stack in &stacks {
        // SAFETY: the address is inside the stack, which this test owns.
        unsafe { last_byte(stack).write(7) };
    }
    let in_use: Vec<Stack> = [6, 3].map(|index| stacks.remove(index)).into();
    discard(&mut stacks);
    for (stacks, expected) in [(&in_use, 7), (&stacks, 0)] {
        for stack in stacks {
            // SAFETY: the address is inside the stack, which this test owns.
            assert_eq!(unsafe { last_byte(stack).read() }, expected);
            assert!(is_guard(stack.limit().wrapping_sub(page_size())));
        }
    }
    stacks
        .into_iter()
        .chain(in_use)
        .for_each(|stack| _ = cache.give(stack));
    cache.release();
}
