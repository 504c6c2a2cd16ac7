//! If everything runs in one hub, the log shows the order of the tasks. With servers in other
//! threads, only the results are the same each time.

use std::rc::Rc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::Result;
use greenlet::assert_no_leaks;
use greenlet::testing::recorder::{Event, Recording, note, record};
use mio::net::TcpListener;

use crate::channel::channel;
use crate::clients::{chat_client, echo_client, greet_chat, greet_echo, run_clients};
use crate::hub::Hub;
use crate::net::{Lines, listen};
use crate::servers::{self, Rooms};

/// Runs the first task of a hub, and records it. The tests fail if a task is never woken.
fn recorded(first: impl FnOnce(&Rc<Hub>) -> Result<()> + 'static) -> Recording {
    let (done, wait_for_done) = mpsc::channel();
    std::thread::spawn(move || {
        if let Err(RecvTimeoutError::Timeout) = wait_for_done.recv_timeout(Duration::from_secs(30)) {
            eprintln!("a task waits for ever");
            std::process::abort();
        }
    });
    let (outcome, recording) = record(|| {
        assert_no_leaks(|| {
            let hub = Hub::new().unwrap();
            let inside = hub.clone();
            let outcome = hub.run(move || first(&inside));
            hub.clear();
            outcome
        })
    });
    outcome.unwrap();
    drop::<mpsc::Sender<()>>(done);
    recording
}

/// Starts a server in a hub, and returns its address.
fn serve(hub: &Rc<Hub>, serve: impl Fn(Rc<Lines>) -> Result<()> + 'static) -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    let address = listener.local_addr()?;
    let inside = hub.clone();
    hub.spawn("server", move || listen(&inside, listener, serve));
    Ok(address)
}

#[test]
fn sleepers_wake_in_the_order_of_their_times() {
    let recording = recorded(|hub| {
        for (name, time) in [("late", 60), ("early", 20), ("middle", 40)] {
            let inside = hub.clone();
            hub.spawn(name, move || inside.sleep(Duration::from_millis(time)));
        }
        hub.sleep(Duration::from_millis(80))
    });
    recording.assert_eq(&[
        "start main -> first",
        "switch first -> main",
        "start main -> late",
        "switch late -> main",
        "start main -> early",
        "switch early -> main",
        "start main -> middle",
        "switch middle -> main",
        "switch main -> early",
        "end early -> main",
        "switch main -> middle",
        "end middle -> main",
        "switch main -> late",
        "end late -> main",
        "switch main -> first",
        "end first -> main",
    ]);
}

#[test]
fn tasks_that_wait_are_ended_with_the_hub() {
    let recording = recorded(|hub| {
        let inside = hub.clone();
        hub.spawn("waits", move || {
            let outcome = inside.sleep(Duration::from_secs(3600));
            note(outcome.as_ref().unwrap_err().to_string());
            outcome
        });
        hub.sleep(Duration::ZERO)
    });
    recording.assert_eq(&[
        "start main -> first",
        "switch first -> main",
        "start main -> waits",
        "switch waits -> main",
        "switch main -> first",
        "end first -> main",
        "throw main -> waits", // the hub is cleared
        "note waits: greenlet exit: the last handle of the greenlet was dropped",
        "end waits -> main",
    ]);
}

#[test]
fn an_echo_comes_back_to_who_waits_for_it() {
    let recording = recorded(|hub| {
        let address = serve(hub, |lines| servers::echo(&lines))?;
        let lines = Lines::connect(hub, address)?;
        for line in ["one", "two"] {
            lines.write(line)?;
            note(lines.read()?.unwrap());
        }
        lines.close();
        note(format!("{:?}", lines.read()?));
        Ok(())
    });
    recording.assert_eq(&[
        "start main -> first",
        "switch first -> main",
        "start main -> server",
        "switch server -> main",
        "start main -> connection",
        "switch connection -> main",
        "switch main -> first",
        "note first: one",
        "switch first -> main",
        "switch main -> connection",
        "switch connection -> main",
        "switch main -> first",
        "note first: two",
        "switch first -> main",
        "switch main -> connection",
        "end connection -> main",
        "switch main -> first",
        "note first: None",
        "end first -> main",
        "throw main -> server",
        "end server -> main",
    ]);
}

/// mio reports a change once, even if no task waits for it, and reports the end together with the
/// last line.
#[test]
fn changes_that_come_early_are_seen() {
    let recording = recorded(|hub| {
        let (told, wait) = channel::<()>(hub);
        let (go, wait_for_go) = channel::<()>(hub);
        let wait_for_go = Rc::new(wait_for_go);
        let address = serve(hub, move |lines| {
            note(lines.read()?.unwrap());
            told.send(());
            wait_for_go.recv()?;
            note(lines.read()?.unwrap());
            told.send(());
            note(lines.read()?.unwrap());
            note(format!("{:?}", lines.read()?));
            told.send(());
            Ok(())
        })?;
        let client = Lines::connect(hub, address)?;
        client.write("first")?;
        wait.recv()?;
        client.write("second")?;
        hub.sleep(Duration::ZERO)?; // the loop polls the sockets while no task waits
        go.send(());
        wait.recv()?;
        client.write("last")?;
        client.close();
        wait.recv()?;
        Ok(())
    });
    recording.assert_eq(&[
        "start main -> first",
        "switch first -> main", // waits to be told
        "start main -> server",
        "switch server -> main",
        "start main -> connection",
        "note connection: first",
        "switch connection -> main", // waits to go on
        "switch main -> first",
        "switch first -> main", // sleeps
        "switch main -> first",
        "switch first -> main", // waits to be told
        "switch main -> connection",
        "note connection: second",
        "switch connection -> main", // waits for a line
        "switch main -> first",
        "switch first -> main", // waits to be told
        "switch main -> connection",
        "note connection: last",
        "note connection: None",
        "end connection -> main",
        "switch main -> first",
        "end first -> main",
        "throw main -> server",
        "end server -> main",
    ]);
}

#[test]
fn the_chat_says_what_is_said_to_the_room_and_only_there() {
    let recording = recorded(|hub| {
        let rooms = Rooms::default();
        let address = serve(hub, move |lines| servers::chat(&rooms, &lines))?;
        let (heard, hears) = channel(hub);
        let mut members = Vec::new();
        for (name, room, will_hear) in [("ann", "kitchen", 1), ("bob", "kitchen", 2), ("eve", "cellar", 1)] {
            let lines = Rc::new(Lines::connect(hub, address)?);
            greet_chat(&lines)?;
            lines.write(room)?;
            lines.write(name)?;
            members.push(lines.clone());
            let heard = heard.clone();
            hub.spawn(name, move || {
                while let Some(line) = lines.read()? {
                    note(line);
                    heard.send(());
                }
                note("leaves");
                heard.send(());
                Ok(())
            });
            for _ in 0..will_hear {
                hears.recv()?;
            }
        }
        members[0].write("hello")?;
        hears.recv()?;
        for member in members {
            member.write("/quit")?;
            hears.recv()?;
        }
        Ok(())
    });
    let notes = recording.events().iter().filter(|event| event.text().is_some());
    let notes: Vec<String> = notes.map(Event::to_string).collect();
    assert_eq!(
        notes,
        [
            "note ann: * here: 1",
            "note ann: * here: 2",
            "note bob: * here: 2",
            "note eve: * here: 1",
            "note bob: ann: hello",
            "note ann: leaves",
            "note bob: leaves",
            "note eve: leaves",
        ]
    );
}

#[test]
fn another_thread_wakes_the_task_that_waits_for_it() {
    let recording = recorded(|hub| {
        let (sender, receiver) = channel(hub);
        let (go, wait_for_go) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            wait_for_go.recv().unwrap();
            sender.send("work");
        });
        hub.spawn("later", move || Ok(go.send(())?)); // runs when `first` waits
        note(receiver.recv()?.unwrap());
        thread.join().unwrap();
        note(format!("{:?}", receiver.recv()?));
        Ok(())
    });
    recording.assert_eq(&[
        "start main -> first",
        "switch first -> main", // waits
        "start main -> later",
        "end later -> main",
        "switch main -> first", // woken by the thread
        "note first: work",
        "note first: None",
        "end first -> main",
    ]);
}

#[test]
fn each_client_of_a_server_elsewhere_gets_its_own_lines() {
    let address = servers::hub_echo().unwrap().address;
    run_clients(100, address, greet_echo, |n, _, lines| echo_client(lines, n, 5)).unwrap();
}

#[test]
fn each_member_of_a_room_hears_all_others() {
    let address = servers::hub_chat().unwrap().address;
    run_clients(60, address, greet_chat, |n, hub, lines| {
        chat_client(hub, lines, n, 6)
    })
    .unwrap();
}

#[test]
fn work_goes_to_another_threads_hub_and_back() {
    assert_eq!(crate::hand_over(100).unwrap(), (0..100).map(|n| n * n).sum());
}
