//! Recordings as snapshots: texts in files, which edits of the code do not change.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use super::Recording;

impl Recording {
    /// Returns the events as a text for a snapshot: one line each, without source lines and times.
    ///
    /// Greenlets appear by their names. Those without one are all called `unnamed`, because their numbers
    /// change when one is added. So an edit changes the snapshot only if it changes the order of events.
    ///
    /// # Examples
    ///
    /// ```
    /// use greenlet::{Greenlet, record};
    ///
    /// let (_, recording) = record(|| {
    ///     Greenlet::builder().name("child").build(|(): ()| Ok(())).switch::<()>(()).unwrap();
    ///     Greenlet::new(|(): ()| Ok(())).switch::<()>(()).unwrap();
    /// });
    /// assert_eq!(
    ///     recording.to_snapshot(),
    ///     "start main -> child\nend child -> main\nstart main -> unnamed\nend unnamed -> main\n"
    /// );
    /// ```
    pub fn to_snapshot(&self) -> String {
        let lines = self.for_snapshot();
        lines.events.iter().map(|event| format!("{event}\n")).collect()
    }

    fn for_snapshot(&self) -> Recording {
        let mut lines = self.clone();
        let unnamed: Arc<str> = "unnamed".into();
        for event in &mut lines.events {
            event.place = None;
            for name in [&mut event.origin, &mut event.target] {
                if self.unnamed.contains(name) {
                    *name = Arc::clone(&unnamed);
                }
            }
        }
        lines
    }

    /// Asserts that the [snapshot](Recording::to_snapshot) is that of a file. The path is relative to the
    /// folder of the package, where Cargo runs tests.
    ///
    /// With the environment variable `GREENLET_SNAPSHOTS=write` it writes the file instead.
    ///
    /// # Panics
    ///
    /// Panics with the difference, and if the file cannot be read or written.
    #[track_caller]
    pub fn assert_snapshot(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let shown = path.display();
        let hint = "run the test with GREENLET_SNAPSHOTS=write to write it";
        if std::env::var_os("GREENLET_SNAPSHOTS").is_some_and(|what| what == "write") {
            if let Err(error) = std::fs::write(path, self.to_snapshot()) {
                panic!("the snapshot {shown} cannot be written: {error}");
            }
            return;
        }
        let expected = match std::fs::read_to_string(path) {
            Ok(expected) => expected,
            Err(error) => panic!("the snapshot {shown} cannot be read: {error}; {hint}"),
        };
        let expected: Vec<&str> = expected.lines().collect();
        if let Err(difference) = self.for_snapshot().compare(&expected) {
            panic!("the snapshot {shown} differs; {hint} anew\n{difference}");
        }
    }
}
