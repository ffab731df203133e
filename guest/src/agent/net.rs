//! TCP over the subject's own loopback.

use crate::report;
use crate::timing::Budget;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

/// One operation of the stream.
const LARGE: usize = 64 << 10;

/// Every kind by its name.
pub fn measure(budget: Budget) {
    report("net_round_trip", round_trip(budget));
    report("net_connect", connect(budget));
    report("net_stream", stream(budget));
}

fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let (listener, address) = listen()?;
    let near = TcpStream::connect(address)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

fn round_trip(budget: Budget) -> io::Result<Vec<f64>> {
    let (mut near, mut far) = pair()?;
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
    });
    let times = budget.time(|count| {
        (0..count).try_for_each(|_| {
            near.write_all(&[0])?;
            near.read_exact(&mut [0])
        })
    });
    near.shutdown(Shutdown::Both)?;
    let _ = echo.join();
    times
}

fn connect(budget: Budget) -> io::Result<Vec<f64>> {
    let (listener, address) = listen()?;
    budget.time(|count| {
        (0..count).try_for_each(|_| {
            let near = TcpStream::connect(address)?;
            let (mut far, _) = listener.accept()?;
            // Who ends first keeps the port for a minute: the listening side has
            // only one.
            far.shutdown(Shutdown::Write)?;
            drop(near);
            let _ = far.read(&mut [0]);
            Ok(())
        })
    })
}

fn stream(budget: Budget) -> io::Result<Vec<f64>> {
    let (mut near, mut far) = pair()?;
    let sink = thread::spawn(move || {
        let mut buffer = vec![0; LARGE];
        while let Ok(1..) = far.read(&mut buffer) {}
    });
    let buffer = vec![0; LARGE];
    let rates = budget.rate(LARGE, |count| (0..count).try_for_each(|_| near.write_all(&buffer)));
    near.shutdown(Shutdown::Both)?;
    let _ = sink.join();
    rates
}
