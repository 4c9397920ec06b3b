package main

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	pb "interop/gen/conversations/v1"
)

const (
	end          = "the end"
	shortSilence = 500 * time.Millisecond // an idle stream is silent for 30 s
)

// watchSteps are the steps that follow a conversation. Those that write have a conversation of their own.
type watchSteps struct {
	*scenario
	client   pb.ConversationsServiceClient // on a connection for watches
	scripted pb.ConversationsServiceClient // of a service whose streams end as a script says
}

// watch is told all that happens in order, each once, and goes on with the token of another watch.
func (w *watchSteps) watch(ctx context.Context) error {
	made, err := w.branch(ctx, "one", "two")
	if err != nil {
		return err
	}
	id, client := made.conversation.GetId(), made.client
	first := w.from(ctx, id, followOptions{})
	defer first.stop()
	if err := first.expect("topic branch", "1 one", "2 two"); err != nil {
		return err
	}
	third, err := made.readAndAppend(ctx, "three")
	second := w.from(ctx, id, followOptions{resumeToken: first.token})
	defer second.stop()
	if err := second.expectAfter(err, "3 three"); err != nil {
		return err
	}
	_, err = client.DeleteItem(ctx, &pb.DeleteItemRequest{ConversationId: id, ItemId: third})
	if err := second.expectAfter(err, "3 deleted"); err != nil {
		return err
	}
	changed := &pb.Conversation{Id: id, Metadata: map[string]string{"topic": "leaf"}}
	_, err = client.UpdateConversation(ctx, &pb.UpdateConversationRequest{Conversation: changed})
	if err := second.expectAfter(err, "topic leaf"); err != nil {
		return err
	}
	_, err = client.DeleteConversation(ctx, &pb.DeleteConversationRequest{ConversationId: id})
	if err := second.expectAfter(err, "conversation deleted"); err != nil {
		return err
	}
	if event, err, more := second.next(); more {
		return fmt.Errorf("want the end, got %v, %v", event, err)
	}
	return nil
}

// reset uses the token of another conversation: the watch says that it begins anew, and does.
func (w *watchSteps) reset(ctx context.Context) error {
	other := w.from(ctx, w.conversation.GetId(), followOptions{})
	defer other.stop()
	if _, err, _ := other.read(); err != nil {
		return err
	}
	made, err := w.branch(ctx, "one")
	if err != nil {
		return err
	}
	watch := w.from(ctx, made.conversation.GetId(), followOptions{resumeToken: other.token})
	defer watch.stop()
	if event, err, _ := watch.next(); err != nil || !event.reset {
		return fmt.Errorf("want a reset, got %v, %v", event, err)
	}
	return watch.expect("topic branch", "1 one")
}

// refused has its credentials renewed once, and a watch of nothing end.
func (w *watchSteps) refused(ctx context.Context) error {
	renewals, token := 0, "expired" // the server refuses all credentials, since it checks none
	client := withToken{w.client, &token}
	request := &pb.WatchItemsRequest{ConversationId: w.conversation.GetId()}
	inVain := func(context.Context) error { renewals++; return nil }
	watch := pull(watchItems(ctx, client, request, followOptions{renew: inVain}))
	defer watch.stop()
	_, err, _ := watch.next()
	if err := expect(err, codes.Unauthenticated, "CREDENTIALS_INVALID"); err != nil || renewals != 1 {
		return fmt.Errorf("after %d renewals: %w", renewals, err)
	}
	renew := func(context.Context) error { token = ""; return nil }
	watch = pull(watchItems(ctx, client, request, followOptions{renew: renew}))
	defer watch.stop()
	if err := watch.expect("topic first"); err != nil {
		return err
	}
	watch = w.from(ctx, "conv_nobody", followOptions{})
	defer watch.stop()
	_, err, _ = watch.next()
	return expect(err, codes.NotFound, "CONVERSATION_NOT_FOUND")
}

// withToken sends a token with each stream, if there is one.
type withToken struct {
	pb.ConversationsServiceClient
	token *string
}

func (c withToken) WatchItems(
	ctx context.Context, request *pb.WatchItemsRequest, options ...grpc.CallOption,
) (grpc.ServerStreamingClient[pb.WatchItemsResponse], error) {
	if *c.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+*c.token)
	}
	return c.ConversationsServiceClient.WatchItems(ctx, request, options...)
}

// ends does at each end of a stream what docs/watch.md says. The script also looks at what arrives there.
func (w *watchSteps) ends(ctx context.Context) error {
	token := "old"
	renew := func(context.Context) error { token = "new"; return nil }
	request := &pb.WatchItemsRequest{
		ConversationId: "conv_scripted",
		Start:          &pb.WatchItemsRequest_AfterSequence{AfterSequence: 0},
	}
	var events []string
	for event, err := range watchItems(ctx, withToken{w.scripted, &token}, request, followOptions{renew: renew}) {
		if err != nil {
			return err
		}
		if event.reset {
			events = append(events, "reset")
		} else {
			events = append(events, event.message.GetResumeToken())
		}
	}
	if want := []string{"one", "two", "reset", "three", "reset", "four"}; !slices.Equal(events, want) {
		return fmt.Errorf("want %v, got %v", want, events)
	}
	return nil
}

// silence opens an idle stream again and again: each begins with a message, here without changes.
func (w *watchSteps) silence(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request := &pb.WatchItemsRequest{ConversationId: w.conversation.GetId()}
	watch := pull(watchItems(ctx, w.client, request, followOptions{silence: shortSilence}))
	defer watch.stop()
	if err := watch.expect("topic first"); err != nil {
		return err
	}
	for range 3 {
		if event, err, _ := watch.next(); err != nil || event.reset || len(event.message.GetChanges()) > 0 {
			return fmt.Errorf("want a message without changes, got %v, %v", event, err)
		}
	}
	return nil
}

// restart is told every item once and in order, through restarts of the server, one of them without a warning.
func (w *watchSteps) restart(ctx context.Context) error {
	var told []string
	group, calls := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		told, err = w.idsUntilTheEnd(calls)
		return err
	})
	for _, ask := range []string{"restart?", "kill?"} {
		if _, err := w.workThrough(calls, ask); err != nil {
			return err
		}
	}
	if _, err := w.readAndAppend(calls, end); err != nil {
		return err
	}
	if err := group.Wait(); err != nil {
		return err
	}
	items, err := w.list(ctx, pb.Order_ORDER_ASCENDING, 100)
	if stored := ids(items); err == nil && !slices.Equal(stored, told) {
		return fmt.Errorf("%d items are stored, %d were told: %v, %v", len(stored), len(told), stored, told)
	}
	return err
}

func (w *watchSteps) idsUntilTheEnd(ctx context.Context) (found []string, err error) {
	request := &pb.WatchItemsRequest{
		ConversationId: w.conversation.GetId(),
		Start:          &pb.WatchItemsRequest_AfterSequence{AfterSequence: 0},
	}
	for event, err := range watchItems(ctx, w.client, request, followOptions{}) {
		if err != nil {
			return nil, err
		}
		for _, change := range event.message.GetChanges() {
			if it := change.GetItem(); it != nil {
				found = append(found, it.GetId())
			}
			if strings.HasSuffix(inWords(change), end) {
				return found, nil
			}
		}
	}
	return found, nil
}

// from watches a conversation and all its items.
func (w *watchSteps) from(ctx context.Context, id string, options followOptions) *watch {
	request := &pb.WatchItemsRequest{ConversationId: id, Start: &pb.WatchItemsRequest_AfterSequence{AfterSequence: 0}}
	return pull(watchItems(ctx, w.client, request, options))
}

// watch reads events one by one.
type watch struct {
	next  func() (event[*pb.WatchItemsResponse], error, bool)
	stop  func()
	token string // of the last message that was read
}

func pull(events iter.Seq2[event[*pb.WatchItemsResponse], error]) *watch {
	next, stop := iter.Pull2(events)
	return &watch{next: next, stop: stop}
}

// read returns the changes of the next message in words.
func (w *watch) read() (words []string, err error, more bool) {
	event, err, more := w.next()
	for _, change := range event.message.GetChanges() {
		words = append(words, inWords(change))
	}
	if err == nil && more {
		w.token = event.message.GetResumeToken()
	}
	return words, err, more
}

// expect reads until so many changes have been told, and compares them.
func (w *watch) expect(want ...string) error {
	var words []string
	for len(words) < len(want) {
		next, err, more := w.read()
		if err != nil || !more {
			return fmt.Errorf("want %v, got %v, then the end: %w", want, words, err)
		}
		words = append(words, next...)
	}
	if !slices.Equal(words, want) {
		return fmt.Errorf("want %v, got %v", want, words)
	}
	return nil
}

// expectAfter does the same after a write, unless that has failed.
func (w *watch) expectAfter(err error, want ...string) error {
	if err != nil {
		return err
	}
	return w.expect(want...)
}

func inWords(change *pb.ItemChange) string {
	switch change := change.GetChange().(type) {
	case *pb.ItemChange_Item:
		words := fmt.Sprint(change.Item.GetSequence())
		for _, part := range change.Item.GetMessage().GetContent() {
			words += " " + part.GetInputText().GetText()
		}
		return words
	case *pb.ItemChange_DeletedItem:
		return fmt.Sprint(change.DeletedItem.GetSequence(), " deleted")
	case *pb.ItemChange_Conversation:
		return "topic " + change.Conversation.GetMetadata()["topic"]
	case *pb.ItemChange_ConversationDeleted:
		return "conversation deleted"
	}
	return fmt.Sprintf("unexpected: %v", change)
}
