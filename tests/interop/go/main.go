// Command interop is a Go client that tries every method, and prints a line after each successful step.
package main

//go:generate buf generate

import (
	"context"
	"fmt"
	"os"

	pb "interop/gen/conversations/v1"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	conn, err := dial(os.Getenv("TARGET"), os.Getenv("SERVICE_CONFIG"))
	if err != nil {
		return err
	}
	defer conn.Close()
	watching, err := dialForWatches(os.Getenv("TARGET"), os.Getenv("SERVICE_CONFIG"))
	if err != nil {
		return err
	}
	defer watching.Close()
	scripted, err := dialForWatches(os.Getenv("SCRIPTED"), os.Getenv("SERVICE_CONFIG"))
	if err != nil {
		return err
	}
	defer scripted.Close()

	s := newScenario(conn, os.Getenv("LOCKED"))
	l := &lifecycleSteps{s, pb.NewTransferServiceClient(conn), pb.NewErasureServiceClient(conn)}
	w := &watchSteps{s, pb.NewConversationsServiceClient(watching), pb.NewConversationsServiceClient(scripted)}
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"create", s.create},
		{"append", s.append},
		{"pages", s.pages},
		{"etag", s.etag},
		{"not_found", s.notFound},
		{"denied", s.denied},
		{"deadline", s.deadline},
		{"stream", s.stream},
		{"retention", l.retention},
		{"rewind", l.rewind},
		{"fork", l.fork},
		{"undelete", l.undelete},
		{"delete_many", l.deleteMany},
		{"transfer", l.transfer},
		{"restart", s.restart},
		{"watch", w.watch},
		{"watch_reset", w.reset},
		{"watch_refused", w.refused},
		{"watch_silence", w.silence},
		{"watch_ends", w.ends},
		{"watch_restart", w.restart},
	}
	for _, step := range steps {
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Println("ok", step.name)
	}
	return nil
}
