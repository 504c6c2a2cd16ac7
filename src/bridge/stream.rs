//! Converts streams into iterators, and synchronous functions into streams.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use anyhow::Result;
use futures_core::Stream;

use super::await_::{await_, try_await_};
use super::spawn::{Spawn, SpawnBuilder, UseLocalSetOrPinnedPool};

/// Creates an iterator over a stream, for use in a spawned function. Each `next` awaits an item.
///
/// The stream must be `Unpin`. Pin other streams first, with `Box::pin` or [`std::pin::pin!`]. The
/// iterator drops the stream when that has ended, and returns `None` from then on.
///
/// # Panics
///
/// `next` panics and unwinds where [`await_`] does.
///
/// # Examples
///
/// ```
/// use futures::stream;
/// use greenlet::{greenlet_spawn, iter_stream};
///
/// let spawned = greenlet_spawn(|| {
///     let numbers = iter_stream(stream::iter([1, 2, 3]));
///     numbers.map(|n| n * n).sum::<i32>()
/// });
/// assert_eq!(futures::executor::block_on(spawned), 14);
/// ```
pub fn iter_stream<S: Stream + Unpin>(stream: S) -> StreamIter<S> {
    StreamIter { stream: Some(stream) }
}

/// An iterator over a stream: see [`iter_stream`].
#[derive(Debug)]
pub struct StreamIter<S> {
    stream: Option<S>,
}

impl<S: Stream + Unpin> Iterator for StreamIter<S> {
    type Item = S::Item;

    #[track_caller]
    fn next(&mut self) -> Option<S::Item> {
        let stream = self.stream.as_mut()?;
        let item = await_(poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)));
        if item.is_none() {
            self.stream = None;
        }
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.as_ref().map_or((0, Some(0)), Stream::size_hint)
    }
}

impl<S: Stream + Unpin> FusedIterator for StreamIter<S> {}

/// Creates a stream of the items that a synchronous function yields.
///
/// The function runs while the stream is polled, as in [`greenlet_spawn`](crate::greenlet_spawn).
/// It may await between its items. The stream returns each item before it resumes the function for
/// the next one. The stream ends when the function returns. Dropping the stream ends the function.
///
/// # Panics
///
/// Polling the stream panics where polling a [`Spawn`] does.
///
/// # Examples
///
/// ```
/// use futures::StreamExt;
/// use greenlet::{await_, stream_from};
///
/// let stream = stream_from(|items| {
///     for n in 1..=3 {
///         let squared = await_(async { n * n });
///         items.yield_(squared);
///     }
/// });
/// let items: Vec<i32> = futures::executor::block_on(stream.collect());
/// assert_eq!(items, [1, 4, 9]);
/// ```
#[track_caller]
pub fn stream_from<T, F>(function: F) -> SpawnStream<T>
where
    T: 'static,
    F: FnOnce(&mut Items<T>) + 'static,
{
    SpawnBuilder::new().stream(function)
}

impl SpawnBuilder {
    /// Creates a stream: see [`stream_from`].
    #[track_caller]
    pub fn stream<T, F>(self, function: F) -> SpawnStream<T>
    where
        T: 'static,
        F: FnOnce(&mut Items<T>) + 'static,
    {
        let item = Rc::new(Cell::new(None));
        let mut yielder = Items {
            item: Rc::clone(&item),
        };
        SpawnStream {
            not_send: PhantomData,
            function: Some(self.spawn(move || function(&mut yielder))),
            item: Yielded(item),
        }
    }
}

/// Receives the items of a function that [`stream_from`] runs.
///
/// # Examples
///
/// ```
/// use futures::{StreamExt, executor::block_on};
/// use greenlet::{Items, stream_from};
///
/// fn count(items: &mut Items<u32>) -> anyhow::Result<()> {
///     for n in 0.. {
///         items.try_yield(n)?; // an error when the stream is dropped
///     }
///     Ok(())
/// }
/// let stream = stream_from(|items| {
///     let error = count(items).unwrap_err();
///     println!("ended: {error}");
/// });
/// assert_eq!(block_on(stream.take(3).collect::<Vec<u32>>()), [0, 1, 2]);
/// ```
pub struct Items<T> {
    item: Rc<Cell<Option<T>>>,
}

impl<T> Items<T> {
    /// Yields an item, and returns when the stream is polled for the next one.
    ///
    /// # Panics
    ///
    /// Unwinds and panics where [`await_`] does. It unwinds if the stream is dropped, for example.
    #[track_caller]
    pub fn yield_(&mut self, item: T) {
        self.item.set(Some(item));
        await_(self.taken());
    }

    /// Yields an item as [`yield_`](Items::yield_) does, but returns an error where that unwinds.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`try_await_`], and drops the item.
    #[track_caller]
    pub fn try_yield(&mut self, item: T) -> Result<()> {
        self.item.set(Some(item));
        let taken = try_await_(self.taken());
        if taken.is_err() {
            drop(self.item.take());
        }
        taken
    }

    /// Waits until the stream has taken the item. Needs no waker: the stream takes the item as soon
    /// as the function waits, and polls this future when it is polled itself.
    fn taken(&self) -> impl Future<Output = ()> + use<T> {
        let item = Rc::clone(&self.item);
        poll_fn(move |_| {
            let found = item.take();
            let is_taken = found.is_none();
            item.set(found);
            if is_taken { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

impl<T> fmt::Debug for Items<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Items")
    }
}

/// The stream of the items that a function yields: see [`stream_from`].
#[must_use = "streams do nothing unless polled"]
pub struct SpawnStream<T: 'static> {
    /// First, so that the compiler names it first.
    not_send: PhantomData<*const UseLocalSetOrPinnedPool>,
    /// `None` after the function has ended.
    function: Option<Spawn<()>>,
    item: Yielded<T>,
}

/// What the function has yielded. A type of its own, because the compiler names an `Rc` right in the
/// stream before the advice.
struct Yielded<T>(Rc<Cell<Option<T>>>);

impl<T: 'static> Stream for SpawnStream<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let Some(function) = &mut self.function else {
            return Poll::Ready(None);
        };
        let is_over = Pin::new(function).poll(cx).is_ready();
        if is_over {
            self.function = None;
        }
        match self.item.0.take() {
            Some(item) => Poll::Ready(Some(item)),
            None if is_over => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl<T: 'static> Unpin for SpawnStream<T> {}

impl<T: 'static> fmt::Debug for SpawnStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SpawnStream").field(&self.function).finish()
    }
}
