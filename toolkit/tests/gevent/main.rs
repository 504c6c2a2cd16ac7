//! Cases of gevent's own tests: their meaning, on three schedulers, and in every order.
//!
//! Each case runs on the round robin and the I/O hub of the examples, in virtual time, and under a
//! search through the orders of virtual time. The comment above a case names gevent's test.

mod cases;
#[path = "../../../examples/hub/hub.rs"]
#[allow(dead_code, reason = "the sockets are not used here")]
mod hub;
#[path = "../../../examples/round_robin/scheduler.rs"]
#[allow(dead_code, reason = "the tasks pause by a sleep")]
mod round_robin;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use greenlet::assert_no_leaks;
use greenlet::testing::explore::Explore;
use greenlet_toolkit::{Kit, VirtualTime};

/// A scheduler with a kit, and a log of what the tasks do.
pub(crate) struct World {
    pub(crate) kit: Kit,
    run_loop: Box<dyn Fn() -> Result<()>>,
    log: Rc<RefCell<Vec<String>>>,
}

impl World {
    fn new(kit: Kit, run_loop: impl Fn() -> Result<()> + 'static) -> World {
        World {
            kit,
            run_loop: Box::new(run_loop),
            log: Rc::default(),
        }
    }

    fn round_robin() -> World {
        let scheduler = round_robin::RoundRobin::new();
        World::new(Kit::new(&scheduler), move || scheduler.run())
    }

    fn hub() -> World {
        let hub = hub::Hub::new().expect("an event loop");
        World::new(Kit::new(&hub), move || hub.run_all())
    }

    fn virtual_time(scheduler: VirtualTime) -> World {
        World::new(Kit::new(&scheduler), move || scheduler.run())
    }

    /// Spawns a task that must not fail. It gets the kit.
    pub(crate) fn task(&self, name: &str, run: impl FnOnce(&Kit) -> Result<()> + 'static) {
        let (kit, log, own) = (self.kit.clone(), self.log.clone(), name.to_owned());
        self.kit.spawn(name, move || {
            run(&kit).map_err(|error| {
                log.borrow_mut().push(format!("{own} failed: {error:#}"));
                error
            })
        });
    }

    /// Runs the tasks to their ends. An error of one of [`World::task`] is an error.
    pub(crate) fn run(&self) -> Result<()> {
        self.kit.run(|| (self.run_loop)())?;
        match self.log.borrow().iter().find(|line| line.contains(" failed: ")) {
            Some(line) => Err(anyhow!("{line}")),
            None => Ok(()),
        }
    }
}

/// A time after which something else has surely happened, if that takes no time.
pub(crate) const SHORT: Duration = Duration::from_millis(10);
/// A time that no test waits for to its end.
pub(crate) const LONG: Duration = Duration::from_secs(60);

type Case = fn(&World) -> Result<()>;

fn on(world: World, case: Case) {
    assert_no_leaks(move || case(&world)).unwrap();
}

fn explored(case: Case) {
    let explore = Explore::new().max_orders(20_000);
    let report = explore.check(|choices| case(&World::virtual_time(VirtualTime::explored(choices))));
    assert!(report.is_complete(), "{report}");
}

macro_rules! cases {
    ($($name:ident)*) => {
        mod on_a_round_robin {
            $(#[test]
            fn $name() {
                super::on(super::World::round_robin(), super::cases::$name);
            })*
        }
        mod on_an_io_hub {
            $(#[test]
            fn $name() {
                super::on(super::World::hub(), super::cases::$name);
            })*
        }
        mod in_virtual_time {
            $(#[test]
            fn $name() {
                super::on(super::World::virtual_time(super::VirtualTime::default()), super::cases::$name);
            })*
        }
        mod in_every_order {
            $(#[test]
            fn $name() {
                super::explored(super::cases::$name);
            })*
        }
    };
}

cases! {
    event_wait_returns_when_it_is_set
    event_wait_with_a_timeout_returns_false
    event_set_wakes_all_waiters
    event_that_is_set_does_not_wait
    event_set_and_clear_wakes_those_that_waited
    event_is_reusable
    result_set_reaches_all_getters
    result_set_before_get_returns_at_once
    result_error_reaches_the_getter
    result_get_with_a_timeout_returns_nothing
    result_of_a_task_is_linked
    queue_passes_items_in_order
    queue_get_waits_for_an_item
    queue_put_waits_for_room
    queue_get_lets_a_put_return
    queue_put_that_gave_up_leaves_the_list
    queue_get_with_a_timeout_leaves_the_list
    queue_put_with_a_timeout_returns_the_item
    queue_gives_each_item_to_one_getter
    queue_senders_that_do_not_wait_are_refused
    queue_getters_are_served_in_order
    channel_put_waits_for_a_get
    queue_item_of_a_killed_getter_is_not_lost
    semaphore_acquire_with_a_timeout_returns_false
    semaphore_release_hands_over_in_order
    semaphore_counter_returns_after_a_burst
    semaphore_bounded_refuses_a_release_too_many
    semaphore_killed_waiter_takes_no_permit
    semaphore_is_not_lost_with_a_killed_waiter_that_was_served
    semaphore_hold_releases_after_an_error
    timeout_ends_a_sleep
    timeout_that_is_dropped_does_nothing
    timeouts_nest_and_the_first_wins
    timeout_of_the_outer_one_passes_the_inner_one
    with_timeout_returns_nothing
    with_timeout_returns_the_value
    task_returns_its_value
    task_get_returns_its_error
    task_join_with_a_timeout_returns_false
    task_that_is_killed_before_its_start_never_runs
    task_that_is_killed_ends_its_wait
    task_kill_waits_until_it_has_ended
    task_kill_of_a_dead_task_does_nothing
    task_kill_with_an_error_of_your_own
    task_that_ignores_a_kill_is_waited_for
    task_that_kills_itself_ends
    task_is_killed_once
    killall_ends_all
    joinall_waits_for_all
    joinall_with_a_timeout_counts_those_that_ended
    sleep_zero_lets_others_run
    spawned_tasks_run_after_the_spawner
    a_wait_for_ever_is_reported
    a_thread_wakes_its_task
}
