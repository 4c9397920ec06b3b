package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "interop/gen/conversations/v1"
)

// scenario is the state that the steps share. Each step continues with the conversation of the first one.
type scenario struct {
	client       pb.ConversationsServiceClient
	locked       string // a conversation whose row is locked, so that appends wait
	conversation *pb.Conversation
}

func newScenario(conn grpc.ClientConnInterface, locked string) *scenario {
	return &scenario{client: pb.NewConversationsServiceClient(conn), locked: locked}
}

func (s *scenario) create(ctx context.Context) error {
	call := &pb.FunctionCall{CallId: "call_1", Name: "search", Arguments: `{"q": "gRPC"}`}
	output := &pb.FunctionCallOutput{
		CallId: proto.String("call_1"),
		Output: &pb.ToolOutput{Form: &pb.ToolOutput_Text{Text: "found"}},
	}
	made, err := s.client.CreateConversation(ctx, &pb.CreateConversationRequest{
		Conversation: &pb.Conversation{Metadata: map[string]string{"topic": "interop"}},
		Items: []*pb.NewItem{
			text("What is gRPC?"),
			item(&pb.Item{Body: &pb.Item_FunctionCall{FunctionCall: call}}),
			item(&pb.Item{Body: &pb.Item_FunctionCallOutput{FunctionCallOutput: output}}),
		},
		RequestId: uuid.NewString(),
	})
	if err != nil {
		return err
	}
	s.conversation = made
	if made.GetLastSequence() != 3 || made.GetMetadata()["topic"] != "interop" || made.GetEtag() == "" {
		return fmt.Errorf("unexpected conversation: %v", made)
	}
	return s.cameBack(ctx, call, output)
}

// branch returns the same with a conversation of its own, which begins with messages of the user.
func (s *scenario) branch(ctx context.Context, words ...string) (*scenario, error) {
	conversation := &pb.Conversation{Metadata: map[string]string{"topic": "branch"}}
	request := &pb.CreateConversationRequest{Conversation: conversation}
	for _, each := range words {
		request.Items = append(request.Items, text(each))
	}
	made, err := s.client.CreateConversation(ctx, request)
	return &scenario{client: s.client, conversation: made}, err
}

// cameBack compares the items of the first step with the request: set fields are as sent, and unset ones stay unset.
func (s *scenario) cameBack(ctx context.Context, call *pb.FunctionCall, output *pb.FunctionCallOutput) error {
	items, err := s.list(ctx, pb.Order_ORDER_ASCENDING, 20)
	if err != nil {
		return err
	}
	if len(items) != 3 {
		return fmt.Errorf("want 3 items, got %d", len(items))
	}
	for i, prefix := range []string{"msg_", "fc_", "fc_"} {
		if id := items[i].GetId(); !strings.HasPrefix(id, prefix) {
			return fmt.Errorf("want an id with %s, got %s", prefix, id)
		}
	}
	switch {
	case items[0].GetMessage().GetContent()[0].GetInputText().GetText() != "What is gRPC?",
		!proto.Equal(items[1].GetFunctionCall(), call),
		!proto.Equal(items[2].GetFunctionCallOutput(), output),
		items[2].GetStatus() != pb.ItemStatus_ITEM_STATUS_COMPLETED, // the default
		items[1].GetFunctionCall().Namespace != nil:
		return fmt.Errorf("other items than sent: %v", items)
	}
	return nil
}

// append sends a request twice, like a client that lost the first answer.
func (s *scenario) append(ctx context.Context) error {
	request := &pb.CreateItemsRequest{
		ConversationId: s.conversation.GetId(),
		Items:          []*pb.NewItem{text("And"), text("REST?")},
		RequestId:      uuid.NewString(),
	}
	first, err := s.client.CreateItems(ctx, request)
	if err != nil {
		return err
	}
	second, err := s.client.CreateItems(ctx, request)
	if err != nil {
		return err
	}
	if a, b := ids(first.GetItems()), ids(second.GetItems()); len(a) != 2 || !slices.Equal(a, b) {
		return fmt.Errorf("the same request gave items %v, then %v", a, b)
	}
	now, err := s.client.GetConversation(ctx, &pb.GetConversationRequest{ConversationId: s.conversation.GetId()})
	if err != nil {
		return err
	}
	if now.GetLastSequence() != 5 {
		return fmt.Errorf("want last_sequence 5, got %d", now.GetLastSequence())
	}
	return nil
}

func (s *scenario) pages(ctx context.Context) error {
	for order, want := range map[pb.Order][]int64{
		pb.Order_ORDER_ASCENDING:  {1, 2, 3, 4, 5},
		pb.Order_ORDER_DESCENDING: {5, 4, 3, 2, 1},
	} {
		items, err := s.list(ctx, order, 2)
		if err != nil {
			return err
		}
		if got := sequences(items); !slices.Equal(got, want) {
			return fmt.Errorf("%v: want %v, got %v", order, want, got)
		}
	}
	return s.invalidPage(ctx)
}

// list reads all items, page by page.
func (s *scenario) list(ctx context.Context, order pb.Order, pageSize int32) ([]*pb.Item, error) {
	request := &pb.ListItemsRequest{ConversationId: s.conversation.GetId(), PageSize: pageSize, Order: order}
	var items []*pb.Item
	for {
		page, err := s.client.ListItems(ctx, request)
		if err != nil {
			return nil, err
		}
		items = append(items, page.GetItems()...)
		if !page.GetHasMore() {
			return items, nil
		}
		request.Cursor = &pb.ListItemsRequest_PageToken{PageToken: page.GetNextPageToken()}
	}
}

// etag updates twice with the original etag.
func (s *scenario) etag(ctx context.Context) error {
	update := func(topic string) error {
		_, err := s.client.UpdateConversation(ctx, &pb.UpdateConversationRequest{
			Conversation: &pb.Conversation{
				Id:       s.conversation.GetId(),
				Etag:     s.conversation.GetEtag(),
				Metadata: map[string]string{"topic": topic},
			},
		})
		return err
	}
	if err := update("first"); err != nil {
		return err
	}
	return expect(update("second"), codes.Aborted, "ETAG_MISMATCH")
}

func (s *scenario) notFound(ctx context.Context) error {
	_, err := s.client.GetConversation(ctx, &pb.GetConversationRequest{ConversationId: "conv_nobody"})
	if err := expect(err, codes.NotFound, "CONVERSATION_NOT_FOUND"); err != nil {
		return err
	}
	_, err = s.client.ListItems(ctx, &pb.ListItemsRequest{ConversationId: "x", PageSize: -1})
	if err := expect(err, codes.InvalidArgument, "FIELD_INVALID"); err != nil {
		return err
	}
	bad, _ := detail[*errdetails.BadRequest](err)
	fields := map[string]bool{}
	for _, violation := range bad.GetFieldViolations() {
		fields[violation.GetField()] = true
	}
	if !maps.Equal(fields, map[string]bool{"conversation_id": true, "page_size": true}) {
		return fmt.Errorf("unexpected violations: %v", bad)
	}
	return nil
}

// denied tries to share, which the policy permits nobody.
func (s *scenario) denied(ctx context.Context) error {
	shared := &pb.Conversation{
		Id:         s.conversation.GetId(),
		Attributes: map[string]*pb.AttributeValues{"teams": {Values: []string{"search"}}},
	}
	_, err := s.client.UpdateConversation(ctx, &pb.UpdateConversationRequest{Conversation: shared})
	return expect(err, codes.PermissionDenied, "ACTION_DENIED")
}

func (s *scenario) deadline(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err := s.client.CreateItems(ctx, &pb.CreateItemsRequest{
		ConversationId: s.locked,
		Items:          []*pb.NewItem{text("too late")},
	})
	if took := time.Since(began); status.Code(err) != codes.DeadlineExceeded || took > time.Second {
		return fmt.Errorf("want DeadlineExceeded after 300ms, got %v after %v", err, took)
	}
	return nil
}

// stream sends all messages, then reads the answers.
func (s *scenario) stream(ctx context.Context) error {
	stream, err := s.client.AppendItems(ctx)
	if err != nil {
		return err
	}
	for _, words := range []string{"one", "two", "three"} {
		request := &pb.AppendItemsRequest{ConversationId: s.conversation.GetId(), Items: []*pb.NewItem{text(words)}}
		if err := stream.Send(request); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	var got []int64
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		got = append(got, answer.GetAppended().GetFirstSequence())
	}
	if !slices.Equal(got, []int64{6, 7, 8}) {
		return fmt.Errorf("want answers for 6, 7 and 8, got %v", got)
	}
	return nil
}

func item(it *pb.Item) *pb.NewItem {
	return &pb.NewItem{Source: &pb.NewItem_Item{Item: it}}
}

// text returns a message of the user.
func text(words string) *pb.NewItem {
	content := &pb.Content{Part: &pb.Content_InputText{InputText: &pb.InputText{Text: words}}}
	message := &pb.Message{Role: pb.Role_ROLE_USER, Content: []*pb.Content{content}}
	return item(&pb.Item{Body: &pb.Item_Message{Message: message}})
}

func ids(items []*pb.Item) []string {
	return each(items, (*pb.Item).GetId)
}

func sequences(items []*pb.Item) []int64 {
	return each(items, (*pb.Item).GetSequence)
}

func each[T any](items []*pb.Item, of func(*pb.Item) T) []T {
	var found []T
	for _, it := range items {
		found = append(found, of(it))
	}
	return found
}
