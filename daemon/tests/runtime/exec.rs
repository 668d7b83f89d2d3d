//! Programs that run beside a container's own.

use super::*;

#[tokio::test]
async fn exec_passes_input_output_and_exit_code() {
    let bed = Bed::new();
    bed.run_with("sleep 1000", |spec| spec.env = vec!["A=first".to_owned()])
        .await;
    let interactive = ExecRequest {
        interactive: true,
        ..command("cat; echo oops >&2; exit 5")
    };
    assert_eq!(
        bed.exec(interactive, b"hello\n").await,
        ("hello\n".to_owned(), "oops\n".to_owned(), 5)
    );
    assert_eq!(
        bed.shell("cat; kill -9 $$").await,
        (String::new(), String::new(), 137)
    );
    let as_web = ExecRequest {
        user: "web".to_owned(),
        workdir: "/tmp".to_owned(),
        env: vec!["B=second".to_owned()],
        ..command(
            "id -un; id -Gn; pwd; echo $A $B $HOME; grep CapEff /proc/self/status; grep Seccomp: /proc/self/status",
        )
    };
    let (stdout, _, code) = bed.exec(as_web, b"").await;
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "web",
            "web log",
            "/tmp",
            "first second /var/www",
            "CapEff:\t0000000000000000",
            "Seccomp:\t2"
        ]
    );
    assert_eq!(code, 0);
    let missing = ExecRequest {
        command: vec!["nowhere".to_owned()],
        ..ExecRequest::default()
    };
    assert_eq!(bed.exec(missing, b"").await.2, 127);
    let directory = ExecRequest {
        command: vec!["/tmp".to_owned()],
        ..ExecRequest::default()
    };
    assert_eq!(bed.exec(directory, b"").await.2, 126);
    let (count, _, _) = bed.shell("head -c 3000000 /dev/zero | tr '\\0' x").await;
    assert_eq!(count.len(), 3_000_000);
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    let refused = bed.runtime.exec(&bed.paths, &command("true")).await;
    assert!(matches!(refused, Err(ExecError::NotRunning { .. })));
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn exec_with_a_terminal_has_its_size_and_changes_it() {
    let bed = Bed::new();
    bed.run("sleep 1000").await;
    let size = |rows, columns| TerminalSize { rows, columns };
    let request = ExecRequest {
        tty: true,
        interactive: true,
        size: Some(size(30, 90)),
        ..command(
            "test -t 0 && test -t 2 && stty size; trap 'stty size; exit 4' WINCH; echo $TERM; while :; do sleep 0.05; done",
        )
    };
    let mut session = bed.runtime.exec(&bed.paths, &request).await.unwrap();
    let mut screen = String::new();
    let mut code = None;
    while let Some(output) = tokio::time::timeout(PATIENCE, session.output.recv())
        .await
        .expect("exec hangs")
    {
        match output {
            ExecOutput::Stdout(bytes) => screen.push_str(std::str::from_utf8(&bytes).unwrap()),
            ExecOutput::Stderr(bytes) => panic!("{bytes:?} apart from the terminal"),
            ExecOutput::Exit(exit) => code = Some(exit),
        }
        if screen.ends_with("xterm\r\n") {
            session
                .input
                .send(ExecInput::Resize(size(50, 120)))
                .await
                .unwrap();
        }
    }
    assert_eq!((screen.as_str(), code), ("30 90\r\nxterm\r\n50 120\r\n", Some(4)));
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn exec_with_a_terminal_reads_what_is_typed() {
    let bed = Bed::new();
    bed.run("sleep 1000").await;
    let request = ExecRequest {
        tty: true,
        interactive: true,
        ..command("read line; echo got $line; cat; echo end")
    };
    let (screen, _, code) = bed.exec(request, b"typed\n").await;
    assert_eq!((screen.as_str(), code), ("typed\r\ngot typed\r\nend\r\n", 0));
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_process_ends_with_the_client_that_asked_for_it() {
    let bed = Bed::new();
    bed.run("sleep 1000").await;
    for tty in [false, true] {
        let request = ExecRequest {
            tty,
            ..command("trap '' HUP TERM INT; echo here; while :; do sleep 77; done")
        };
        let mut session = bed.runtime.exec(&bed.paths, &request).await.unwrap();
        tokio::time::timeout(PATIENCE, session.output.recv())
            .await
            .unwrap()
            .unwrap();
        drop(session);
        let gone = async {
            while bed.shell("ps | grep -q '[w]hile :; do sleep 77'").await.2 == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .expect("the process outlives its client");
    }
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}
