package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	pb "interop/gen/conversations/v1"
)

const (
	workers = 4
	after   = 20 // calls of each kind after the restart
)

var stdin = bufio.NewReader(os.Stdin)

// restart keeps calling while the server restarts. No call may fail, and no append may be lost or duplicated. Only the
// service config retries.
func (s *scenario) restart(ctx context.Context) error {
	before, err := s.list(ctx, pb.Order_ORDER_ASCENDING, 100)
	if err != nil {
		return err
	}
	answered, err := s.workThrough(ctx, "restart?")
	if err != nil {
		return err
	}
	items, err := s.list(ctx, pb.Order_ORDER_ASCENDING, 100)
	if err != nil {
		return err
	}
	return same(ids(items[len(before):]), answered)
}

// workThrough asks for a restart, and calls until it has been over for a while. It returns the ids of the items whose
// append was answered.
func (s *scenario) workThrough(ctx context.Context, ask string) ([]string, error) {
	back, answered := restarted(ask), make([][]string, workers)
	group, calls := errgroup.WithContext(ctx)
	for w := range workers {
		group.Go(func() (err error) {
			answered[w], err = s.work(calls, back)
			return err
		})
	}
	err := group.Wait()
	return slices.Concat(answered...), err
}

// restarted requests the restart, and closes the channel once the server is back.
func restarted(ask string) <-chan struct{} {
	fmt.Println(ask)
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = stdin.ReadString('\n')
	}()
	return back
}

// work returns the ids of the items whose append was answered.
func (s *scenario) work(ctx context.Context, back <-chan struct{}) ([]string, error) {
	var appended []string
	for left := after; left > 0; {
		select {
		case <-back:
			left--
		default:
		}
		id, err := s.readAndAppend(ctx, "still there?")
		if err != nil {
			return nil, err
		}
		appended = append(appended, id)
	}
	return appended, nil
}

// readAndAppend appends one item. The request id makes that safe to retry.
func (s *scenario) readAndAppend(ctx context.Context, words string) (string, error) {
	id := s.conversation.GetId()
	if _, err := s.client.GetConversation(ctx, &pb.GetConversationRequest{ConversationId: id}); err != nil {
		return "", err
	}
	answer, err := s.client.CreateItems(ctx, &pb.CreateItemsRequest{
		ConversationId: id,
		Items:          []*pb.NewItem{text(words)},
		RequestId:      uuid.NewString(),
	})
	if err != nil {
		return "", err
	}
	return answer.GetItems()[0].GetId(), nil
}

// same compares the stored items with the answers, and finds items that are lost, duplicated or foreign.
func same(stored, answered []string) error {
	slices.Sort(stored)
	slices.Sort(answered)
	if !slices.Equal(stored, answered) {
		return fmt.Errorf("%d appends were answered, %d items are stored", len(answered), len(stored))
	}
	return nil
}
